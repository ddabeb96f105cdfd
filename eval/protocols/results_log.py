"""One file of results that add up: a line of JSON per result of any command that measures.

Each line holds the whole result (`kind`, `name`, `value`, `std`, `protocol` with the hashes of
weights and real clips, ...) and where it comes from: `schema`, `label`, `command`, `versions`,
`date`.
"""

import hashlib
import importlib.metadata
import json
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from common.files import atomic_path

SCHEMA = 1
KINDS = ("fvd", "is", "reconstruction")
LEFT_OUT = ("published", "clips")
"""What can be made anew, or is about single clips."""
PACKAGES = ("torch", "numpy", "scipy", "av")


def append_result(path: str | Path, result: Mapping[str, Any], label: str) -> bool:
    """Add a result to the file, unless it is there already.

    The file is locked meanwhile and replaced as a whole, so that several commands may write to it
    and a killed one leaves it as it was.

    Args:
        path: `.jsonl`; made if it is missing.
        result: what a command found, ready for JSON.
        label: names its row in tables.

    Returns:
        Whether it was added: the same value of the same clips by the same protocol is added once.

    Raises:
        ValueError: the file holds something else.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "schema": SCHEMA,
        "label": label,
        **{name: value for name, value in result.items() if name not in LEFT_OUT},
        "command": shlex.join(["python", *sys.argv]),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with FileLock(path.with_name(f".{path.name}.lock")):
        before = read_results(path) if path.exists() else []
        if _identity(record) in map(_identity, before):
            return False
        with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(each, allow_nan=False) + "\n" for each in (*before, record))
    return True


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """The records of a file of `append_result`.

    Raises:
        ValueError: no such file, or a line that is not such a record; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file of results")
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not valid JSON ({error})") from None
        schema = record.get("schema") if isinstance(record, dict) else None
        if schema != SCHEMA:
            raise ValueError(f"{where}: schema {schema}, but this version reads {SCHEMA}")
        if record.get("kind") not in KINDS:
            raise ValueError(f"{where}: kind {record.get('kind')!r} is not one of {KINDS}")
        if missing := {"label", "protocol", "versions"} - record.keys():
            raise ValueError(f"{where}: has no {min(missing)}")
        records.append(record)
    return records


def check_results(path: str | None) -> None:
    """Refuse (`ValueError`), before anything is measured, a file that no result can be added to."""
    if path is None:
        return
    if Path(path).suffix != ".jsonl":
        raise ValueError(f"results={path}: must end in .jsonl")
    if Path(path).exists():
        read_results(path)


def _identity(record: Mapping[str, Any]) -> str:
    """Hash of what makes two results the same."""
    names = ("kind", "label", "name", "value", "std", "metrics", "protocol")
    fake = record.get("fake") or {}
    parts = [{name: record.get(name) for name in names}, fake.get("content"), record.get("runs")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
