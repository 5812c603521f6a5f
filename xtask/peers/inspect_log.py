"""Reads what `rag-gym runs export --as inspect` wrote with Inspect's own reader.

    python -m venv peers && peers/bin/pip install inspect-ai
    peers/bin/python inspect_log.py LOG.json

Prints one JSON document; fails if Inspect does, or if a sample, score or event got lost on the way.
"""

import argparse
import json
import os

from inspect_ai.log import list_eval_logs, read_eval_log


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log")
    path = parser.parse_args().log
    raw = json.load(open(path))
    header = read_eval_log(path, header_only=True)
    log = read_eval_log(path)
    assert header.samples is None and header.status == log.status == raw["status"]
    assert len(log.samples) == len(raw["samples"]) > 0
    for sample, written in zip(log.samples, raw["samples"]):
        assert set(sample.scores) == set(written["scores"]), sample.id
        assert len(sample.messages) == len(written["messages"]), sample.id
        assert [event.event for event in sample.events] == [event["event"] for event in written["events"]], sample.id
    listed = [entry.name for entry in list_eval_logs(os.path.dirname(os.path.abspath(path)))]
    assert any(name.endswith(os.path.basename(path)) for name in listed), "Inspect does not list the file"
    print(json.dumps({
        "task": log.eval.task,
        "model": log.eval.model,
        "status": log.status,
        "samples": len(log.samples),
        "events": sum(len(sample.events) for sample in log.samples),
        "scores": {score.name: score.metrics["mean"].value for score in log.results.scores},
    }))


main()
