"""Loads what `rag-gym runs export` wrote for TRL, and the Parquet table, with the `datasets` library.

    python -m venv peers && peers/bin/pip install datasets
    peers/bin/python trl_data.py FOLDER        # holds sft.jsonl, preference.jsonl, stepwise.jsonl, run.parquet

Prints one JSON document; fails if a column that TRL's trainers read is missing or has another type.
"""

import argparse
import json
import os
import tempfile

from datasets import load_dataset


def messages(value):
    return isinstance(value, list) and all(set(message) == {"role", "content"} for message in value)


def texts(value):
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def flags(value):
    return isinstance(value, list) and all(isinstance(flag, bool) for flag in value)


EXPECTED = {
    "sft": {"messages": messages},
    "preference": {"prompt": messages, "chosen": messages, "rejected": messages},
    "stepwise": {"prompt": lambda value: isinstance(value, str), "completions": texts, "labels": flags},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    folder = parser.parse_args().folder
    cache = tempfile.mkdtemp()
    found = {}
    for name, columns in EXPECTED.items():
        rows = load_dataset("json", data_files=os.path.join(folder, f"{name}.jsonl"), split="train", cache_dir=cache)
        assert len(rows) > 0, name
        for row in rows:
            for column, fits in columns.items():
                assert fits(row[column]), (name, column, row[column])
            if name == "stepwise":
                assert len(row["completions"]) == len(row["labels"]), row
        found[name] = {"rows": len(rows), "columns": rows.column_names}
    rows = load_dataset("parquet", data_files=os.path.join(folder, "run.parquet"), split="train", cache_dir=cache)
    kinds = {name: feature.dtype for name, feature in rows.features.items()}
    assert kinds["question"] == "string" and kinds["f1"] == "float64" and kinds["searches"] == "int64", kinds
    found["parquet"] = {"rows": len(rows), "columns": kinds}
    print(json.dumps(found))


main()
