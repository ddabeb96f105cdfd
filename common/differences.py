"""What changed between two configs or manifests, for error messages."""

import reprlib
from typing import Any


def differences(
    old: Any, new: Any, ignore: frozenset[str] = frozenset(), name: str = ""
) -> list[str]:
    """One line per value that differs in nested dictionaries, such as `train.steps was 1, now 2`.

    Args:
        old, new: values as JSON or YAML give them back.
        ignore: keys left out, at any depth.
        name: prefix of the lines.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in {**old, **new} if key not in ignore]
        parts = (
            differences(old.get(key), new.get(key), ignore, f"{name}.{key}".strip("."))
            for key in keys
        )
        return [line for lines in parts for line in lines]
    return [] if old == new else [f"{name} was {reprlib.repr(old)}, now {reprlib.repr(new)}"]
