"""Base of every config: types and bounds checked by field, and which fields a rerun may change."""

import json
import math
import reprlib
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import torch
from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf


class _MayChange:
    def __repr__(self) -> str:
        return "MAY_CHANGE"


MAY_CHANGE = _MayChange()
"""Marks a field that a continued run may change: `Annotated[int, Ge(1), MAY_CHANGE]`.

On a nested config it covers every field below.
"""


class Rule(NamedTuple):
    """A rule for `Annotated` besides the bounds of annotated_types."""

    holds: Callable[[Any], bool]
    demand: str
    """What comes after `must`, such as `be a folder`."""

    def __repr__(self) -> str:
        return f"<{self.demand}>"


def _is_device(name: str) -> bool:
    """Whether torch can use a device of this name here."""
    if name in ("auto", "cpu"):
        return True
    kind, _, number = name.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 0
    return number.isdecimal() and int(number) < count if number else count > 0


Workers = Annotated[int, Ge(0), Le(1024)]
"""A number of processes beside the main one."""
Pixels = Annotated[int, Ge(1), Le(16_384)]
"""A height or width; readers take no larger frames."""
Frames = Annotated[int, Ge(1), Le(1_000_000)]
"""Frames of a clip, or from one of its frames to the next."""
BatchSize = Annotated[int, Ge(1), Le(1_000_000)]
"""Clips at once."""
Width = Annotated[int, Ge(1), Le(65_536)]
"""Channels of a layer."""
Device = Annotated[str, Rule(_is_device, "be auto, cpu, or a GPU of this machine: cuda, cuda:1")]
"""Where a command computes."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of frozen keyword-only dataclasses whose annotations are enforced.

    Refused by name: None where the type has no None, a wrong type, NaN, infinity, and a value
    outside the `Annotated` bounds of annotated_types. A subclass that adds rules across fields
    calls `super().__post_init__()` first.
    """

    def __post_init__(self) -> None:
        for name, hint in field_types(type(self)).items():
            check_value(getattr(self, name), hint, name)

    def fixed_fields(self) -> frozenset[str]:
        """Marked fields that these values fix after all, by dotted path; for rules across fields.

        For example, the number of steps, where the learning rate decays until the last step.
        """
        return frozenset()


class Field(NamedTuple):
    """One field of a config or of a config nested in it."""

    name: str
    """Dotted path, such as `train.learning_rate`."""
    hint: Any
    """Annotation, with its bounds."""
    may_change: bool
    """Marked with MAY_CHANGE, itself or a config above it."""


@cache
def field_types(config_class: type) -> dict[str, Any]:
    """Name and annotation of each field, with the `Annotated` bounds."""
    hints = get_type_hints(config_class, include_extras=True)
    return {field.name: hints[field.name] for field in fields(config_class)}


def walk_fields(config_class: type, prefix: str = "", may_change: bool = False) -> Iterator[Field]:
    """Every field, depth first; below an optional config, too."""
    for name, hint in field_types(config_class).items():
        path, marked = prefix + name, may_change or MAY_CHANGE in _metadata(hint)
        yield Field(path, hint, marked)
        for nested in nested_configs(hint):
            yield from walk_fields(nested, f"{path}.", marked)


def nested_configs(hint: Any) -> list[type]:
    """Dataclasses that a field holds itself, not in a list."""
    base = base_type(hint)
    if get_origin(base) in (Union, types.UnionType):
        return [found for option in get_args(base) for found in nested_configs(option)]
    return [base] if is_dataclass(base) and isinstance(base, type) else []


def fixed_differences(old: Mapping[str, Any], new: Config) -> list[str]:
    """What a rerun changes and must not, such as `train.learning_rate was 1, now 2`.

    Args:
        old: the config the run was begun with, as JSON or YAML give it back.
        new: the config of the rerun. Fields marked with MAY_CHANGE are left out, each at its own
            path alone, unless `fixed_fields` names them.
    """
    return differences(_without(_free_fields(new), old), fixed_values(new))


def fixed_values(config: Config) -> dict[str, Any]:
    """What `fixed_differences` compares: all fields that a rerun must not change, for JSON."""
    return _without(_free_fields(config), json_values(asdict(config)))


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """One line per value that differs in nested dictionaries: `train.steps was 1, now 2`."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return [] if old == new else [f"{name} was {reprlib.repr(old)}, now {reprlib.repr(new)}"]
    return [
        line
        for key in {**old, **new}
        for line in differences(old.get(key), new.get(key), f"{name}.{key}".strip("."))
    ]


def json_values(value: Any) -> Any:
    """A value as a JSON file gives it back: tuples are lists, paths are text."""
    return json.loads(json.dumps(value, default=str))


def _free_fields(config: Config, prefix: str = "") -> set[str]:
    """Dotted paths of the fields that a rerun may change."""
    hints = field_types(type(config))
    free = {prefix + name for name, hint in hints.items() if MAY_CHANGE in _metadata(hint)}
    for name in hints:
        if isinstance(value := getattr(config, name), Config):
            free |= _free_fields(value, f"{prefix}{name}.")
    return free - {prefix + name for name in config.fixed_fields()}


def _without(paths: set[str], values: Any, prefix: str = "") -> Any:
    """Nested dictionaries without what is at these dotted paths."""
    if not isinstance(values, Mapping):
        return values
    return {
        name: _without(paths, value, f"{prefix}{name}.")
        for name, value in values.items()
        if prefix + name not in paths
    }


def check_value(value: Any, hint: Any, name: str) -> None:
    """Refuse a value that its annotation does not allow.

    Raises:
        ValueError: by `name`, with the value and what is allowed.
    """
    base, origin = base_type(hint), get_origin(base_type(hint))
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(base) if _has_type(value, option)]
        if options:
            check_value(value, options[0], name)
        else:
            raise _refusal(name, value, f"be {type_name(hint)}")
    elif not _has_type(value, base):
        advice = " (null is not allowed here)" if value is None else ""
        raise _refusal(name, value, f"be {type_name(base)}{advice}")
    elif origin in (list, tuple):
        for i, (each, kind) in enumerate(zip(value, item_types(base, len(value)), strict=True)):
            check_value(each, kind, f"{name}[{i}]")
    elif origin is dict:
        for key, each in value.items():
            check_value(each, get_args(base)[1], f"{name}.{key}")
    elif value == "":
        raise _refusal(name, value, "not be empty")
    elif base in (str, Path) and str(value) in ("null", "~"):  # of a command line
        raise _refusal(name, None, f"be {type_name(base)} (null is not allowed here)")
    elif base is int and abs(value) >= 2**63:
        raise _refusal(name, value, "be a whole number of 64 bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise _refusal(name, value, "be a finite number")
    for rule in _metadata(hint) if value is not None else ():
        if complaint := _complaint(value, rule):
            raise _refusal(name, value, complaint)


def type_name(hint: Any) -> str:
    """A type as users write it, such as `int or null`."""
    base, origin = base_type(hint), get_origin(base_type(hint))
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(option) for option in get_args(base))
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(base)))
    if origin is list or (origin is tuple and _is_repeated(base)):
        return f"a list of {type_name(get_args(base)[0])}"
    if origin is tuple:
        return f"a list ({', '.join(map(type_name, get_args(base)))})"
    if base in (types.NoneType, None):
        return "null"
    if is_dataclass(base):
        return "a mapping"
    return {str: "a string", bool: "true or false", Path: "a path"}.get(
        base, getattr(base, "__name__", str(base))
    )


def item_types(hint: Any, length: int) -> tuple[Any, ...]:
    """The type of each item of a list or tuple of this length, which may also be null.

    Empty where the annotation is that of something else.
    """
    base = base_type(hint)
    if get_origin(base) in (Union, types.UnionType):
        kinds = (x for x in get_args(base) if get_origin(base_type(x)) in (list, tuple))
        base = base_type(next(kinds, None))
    if get_origin(base) not in (list, tuple):
        return ()
    return get_args(base)[:1] * length if _is_repeated(base) else get_args(base)


def is_kind(hint: Any, kind: type) -> bool:
    """Whether the annotation is `kind`, or a list of it where `kind` is list."""
    return kind in (base_type(hint), get_origin(base_type(hint)))


def _refusal(name: str, value: Any, demand: str) -> ValueError:
    return ValueError(f"{name}={'null' if value is None else reprlib.repr(value)} must {demand}")


def _has_type(value: Any, hint: Any) -> bool:
    base, origin = base_type(hint), get_origin(base_type(hint))
    if origin in (Union, types.UnionType):
        return any(_has_type(value, option) for option in get_args(base))
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in get_args(base))
    if base in (types.NoneType, None):
        return value is None
    if base is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if base is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is tuple and not _is_repeated(base):
        return isinstance(value, tuple) and len(value) == len(get_args(base))
    kind = origin or base
    return not isinstance(kind, type) or isinstance(value, kind)


def _is_repeated(hint: Any) -> bool:
    """`list[X]` or `tuple[X, ...]`, whose annotation stands for every item."""
    arguments = get_args(hint)
    return len(arguments) == 1 if get_origin(hint) is list else arguments[-1:] == (...,)


def _complaint(value: Any, rule: Any) -> str | None:
    """What a value must do to keep a rule; None where it does."""
    if isinstance(rule, Ge) and not value >= rule.ge:
        return "not be negative" if rule.ge == 0 else f"be at least {rule.ge}"
    if isinstance(rule, Gt) and not value > rule.gt:
        return f"be above {rule.gt}"
    if isinstance(rule, Le) and not value <= rule.le:
        return f"be at most {rule.le}"
    if isinstance(rule, Lt) and not value < rule.lt:
        return f"be below {rule.lt}"
    if isinstance(rule, MultipleOf) and value % rule.multiple_of:
        return f"be a multiple of {rule.multiple_of}"
    if isinstance(rule, MinLen) and len(value) < rule.min_length:
        return "not be empty" if rule.min_length == 1 else f"have {rule.min_length} values"
    return rule.demand if isinstance(rule, Rule) and not rule.holds(value) else None


def base_type(hint: Any) -> Any:
    """The annotation without bounds and marks."""
    return hint.__origin__ if get_origin(hint) is Annotated else hint


def _metadata(hint: Any) -> tuple[Any, ...]:
    return hint.__metadata__ if get_origin(hint) is Annotated else ()
