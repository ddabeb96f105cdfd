"""Random changes of configs for `benchmarks.faults`: every field of every command."""

import contextlib
import math
import random
import runpy
import shutil
import types
from copy import deepcopy
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml

from benchmarks import fault_chain
from benchmarks.fault_chain import SCRIPTS, Command, last_line
from common import cli
from common.config import Field, base_type, json_values, walk_fields

VALUES: dict[str, Any] = {
    "null": None,
    "inf": float("inf"),
    "minus inf": float("-inf"),
    "nan": float("nan"),
    "minus one": -1,
    "zero": 0,
    "a million million": 10**12,
    "a fraction": 0.3,
    "an empty string": "",
    "a word": "nonsense",
    "true": True,
    "an empty list": [],
    "a list": [1, "x"],
    "a list of null": [None, None],
    "a list of nan": [float("nan"), float("nan")],
    "a list of minus one": [-1, -1],
    "a mapping": {"nonsense": 1},
    "a missing path": "/nonexistent/folder",
    "a file": "/etc/hostname",
}
SIGNED = ("seed", "label")
"""Fields of integers that may be negative, by the end of their name."""
EMPTY = ("title", "text")
"""Fields of text that may be empty."""
UNCHECKED = ("demo.py",)
"""Commands that take minutes as they stand; of others it is seen first that they are accepted."""
LIMIT = 60.0
"""Seconds after which a command counts as hanging; unchanged it takes a few."""


class Mutations:
    """Runs commands with one field changed; no change is tried twice."""

    def __init__(self, root: Path, commands: list[Command], seed: int):
        self.root = root / "work" / "mutations"
        self.accepted: set[str] = set()
        self.changes = [
            (command, field, words)
            for command in commands
            for field in walk_fields(_config_class(command))
            for words in VALUES
            # the demo by its defaults takes many minutes
            if (command.script, words) != ("demo.py", "null")
        ]
        random.Random(f"{seed} changes").shuffle(self.changes)

    def __call__(self, number: int, chance: random.Random) -> tuple[str, str | None]:
        """One change: what was tried, and what is wrong with the answer."""
        command, field, words = self.changes[number % len(self.changes)]
        if command.name not in self.accepted and command.script not in UNCHECKED:
            code, log = self._run(command, {})
            assert code == 0, f"{command.name} is refused as it stands: see {log}"
            self.accepted.add(command.name)
        code, log = self._run(command, {field.name: VALUES[words]})
        tried = f"{command.name}: {field.name} is {words}: exit {code}"
        return tried, _accepted(field, VALUES[words]) if code == 0 else refusal(code, log)

    def _run(self, command: Command, changes: dict[str, Any]) -> tuple[int | None, Path]:
        """Exit code of a command with some options changed, and the file of what it printed."""
        folder = self.root / command.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        given = command.options | command.at(folder / command.file)
        settings = json_values(_nested({**given, **changes}))
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        arguments = [command.subcommand] if command.subcommand else []
        arguments.append(f"--config={folder / 'config.yaml'}")
        with contextlib.chdir(folder):  # for what a relative path names
            return fault_chain.run(command, arguments, folder / "log", LIMIT), folder / "log"


def refusal(code: int | None, log: Path) -> str | None:
    """What is wrong with how a command refused: it owes exit code 2 and one line."""
    text = log.read_text(errors="replace") if log.exists() else ""
    last = last_line(text)
    if code is None:
        return "it hangs"
    if "Traceback" in text:
        return f"traceback: {last}"
    if code != 2:
        return f"exit {code}: {last}"
    return None if "error: " in text else "no error line"


def _accepted(field: Field, value: Any) -> str | None:
    """What is wrong with taking a value."""
    base = base_type(field.hint)
    kinds = get_args(base) if get_origin(base) in (Union, types.UnionType) else (base,)
    kinds = tuple(base_type(kind) for kind in kinds)
    if isinstance(value, list) and None in value:
        return "null in a list was accepted"
    floats = [each for each in value if isinstance(each, float)] if isinstance(value, list) else []
    if any(map(math.isnan, floats)):
        return "nan in a list was accepted"
    if value is None and types.NoneType not in kinds:
        return "null was accepted"
    if isinstance(value, float) and not abs(value) < float("inf"):
        return f"{value} was accepted"
    if value == "" and field.name not in EMPTY:
        return "an empty string was accepted"
    if value == -1 and int in kinds and not field.name.endswith(SIGNED):
        return "a negative count was accepted"
    return None


def _config_class(command: Command) -> type:
    """The dataclass that a script parses, as it gives it to `main`."""
    found: list[Any] = []
    kept, cli.main = cli.main, lambda config_class, run: found.append(config_class)
    try:
        runpy.run_path(str(SCRIPTS / command.script), run_name="__main__")
    finally:
        cli.main = kept
    return found[0][command.subcommand] if command.subcommand else found[0]


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Dotted names as nested mappings."""
    tree: dict[str, Any] = {}
    for name, value in deepcopy(flat).items():  # others' options stay what they are
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[last] = value
    return tree
