"""One command line for every script: YAML plus flags on a frozen dataclass, one-line errors."""

import errno
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import jsonargparse._optionals
import jsonargparse.typing
import torch

from common.config import check_value, field_types, is_kind, item_types, nested_configs, walk_fields

Command = TypeVar("Command")

PACKAGES = ("common", "data", "engine", "eval", "latte", "vae", "__main__")

_INSIDE = r"((?:[^\[\]]|\[[^\[\]]*\])*)"
ANNOTATED = re.compile(rf"Optional\[Annotated\[{_INSIDE}\]\]|Annotated\[{_INSIDE}\]")
"""An annotation with bounds in the help text."""
WORDS = {
    r"Ge\(ge=([^)]*)\)": r"at least \1",
    r"Gt\(gt=([^)]*)\)": r"above \1",
    r"Le\(le=([^)]*)\)": r"at most \1",
    r"Lt\(lt=([^)]*)\)": r"below \1",
    r"MultipleOf\(multiple_of=([^)]*)\)": r"multiple of \1",
    r"MinLen\(min_length=1\)": "not empty",
    r", <[^>]*>": "",
    r"MAY_CHANGE": "may change in a continued run",
}
"""Bounds as the help text says them."""

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
# Where pydantic is installed, jsonargparse has it check the bounds of `Annotated`, in its own words
# and without the field's name; `Config` does so in any case
jsonargparse._optionals.pydantic_support = 0


def _path(text: str) -> Path:
    """An empty path would stand for the folder that the command is started in."""
    if not text:
        raise ValueError("a path must not be empty; use . for the current folder")
    return Path(text)


jsonargparse.typing.register_type(Path, str, _path, fail_already_registered=False)


class Stopped(Exception):
    """A signal asked for the end and the state is saved; carries the exit code 128 + signal."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.code = 128 + signal_number


def parse(
    command: type[Command] | Mapping[str, type[Command]], arguments: Sequence[str] | None = None
) -> Command:
    """Build `command` from `--config file.yaml` and from flags named after its fields.

    `--help` and `--print_config` print and exit, as usual. `--flag` alone means `--flag true`. The
    flag of a list may be repeated, once per value: `--vae A --vae B`.

    Args:
        command: a dataclass; or several by name, one of which the first argument names.
        arguments: by default those of the command line.

    Raises:
        ValueError: an unknown key, a value of the wrong type, or one the dataclass refuses.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if isinstance(command, Mapping):
            parser = Parser(exit_on_error=False)
            choices = parser.add_subcommands(dest="name")
            for name, choice in command.items():
                summary = (choice.__doc__ or "").partition("\n")[0]
                choices.add_subcommand(name, _parser(choice), help=summary)
            if arguments and arguments[0] in command:
                arguments[1:] = _spelled_out(command[arguments[0]], arguments[1:])
            values = parser.parse_args(arguments)
            return _build(command[values.name], values[values.name], "")
        return _build(command, _parser(command).parse_args(_spelled_out(command, arguments)), "")
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"{error}. See --help for the options.") from None
    except RecursionError:
        raise ValueError("recursive YAML alias (*): an option contains itself") from None


def main(
    command: type[Command] | Mapping[str, type[Command]], run: Callable[[Command], Any]
) -> None:
    """Parse and run. Exit codes: 0 done; 2 the user's mistake; 128 + n stopped by signal n."""
    is_main = _is_main()
    logging.basicConfig(level=logging.WARNING if is_main else logging.ERROR, format="%(message)s")
    for package in PACKAGES if is_main else ():
        logging.getLogger(package).setLevel(logging.INFO)
    with warnings.catch_warnings():
        warnings.showwarning = _log_warning
        try:
            run(parse(command))
        except Stopped as stopped:
            code = _complain(str(stopped), stopped.code)
        except KeyboardInterrupt:
            code = _complain("interrupted", 130)
        except Exception as error:
            mistake = _users_mistake(error)
            if mistake is None or os.environ.get("IVVAE_TRACEBACK"):
                raise
            code = _complain(mistake, 2)
        else:
            code = 0
    sys.exit(code)


class Parser(jsonargparse.ArgumentParser):
    """Shows the bounds of a field in words: `int at least 1` for `Annotated[int, Ge(ge=1)]`."""

    def format_help(self, formatter: Any = None) -> str:
        """The text of `--help`."""
        return ANNOTATED.sub(_in_words, super().format_help(formatter))


def _in_words(found: re.Match) -> str:
    text = " ".join((found[1] or found[2]).split())
    for rule, words in WORDS.items():
        text = re.sub(rule, words, text)
    return text


def _parser(command: type) -> Parser:
    parser = Parser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help="YAML file")
    parser.add_class_arguments(command)
    return parser


def _spelled_out(command: type, arguments: Sequence[str]) -> list[str]:
    """`--flag` alone as `--flag=true`; `--list A` as `--list+=A`, which appends."""
    kinds = {f"--{field.name}": field.hint for field in walk_fields(command)}
    changed = list(arguments)
    for i, (argument, following) in enumerate(pairwise([*arguments, "--"])):
        name, equals, given = argument.partition("=")
        hint = kinds.get(name)
        if is_kind(hint, bool) and not equals and following.startswith("--"):
            changed[i] = f"{name}=true"
        if is_kind(hint, list) and not (given if equals else following).startswith("["):
            changed[i] = f"{name}+{equals}{given}"
    return changed


def _build(hint: Any, value: Any, name: str) -> Any:
    """Nested dataclasses from what was parsed; what they refuse is named by its dotted path."""
    if isinstance(value, list | tuple):
        hints = item_types(hint, len(value))
        if len(hints) != len(value):
            check_value(value, hint, name)
        items = [_build(hints[i], item, f"{name}[{i}]") for i, item in enumerate(value)]
        return type(value)(items)
    if not isinstance(value, jsonargparse.Namespace):
        return value
    value = value.get("init_args", value)  # how the parser gives the items of a list
    config_class = nested_configs(hint)[0]
    values = {}
    for field, kind in field_types(config_class).items():
        path = f"{name}.{field}".strip(".")
        if field not in value:  # an item of a list that leaves it at its default
            continue
        values[field] = _build(kind, value[field], path)
        check_value(values[field], kind, path)
    try:
        return config_class(**values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}" if name else str(error)) from None


def _users_mistake(error: Exception) -> str | None:
    """What to tell the user of an error that a change of options or of the machine cures; None of
    any other."""
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, OSError) and error.errno in REMEDIES:
        where = error.filename2 or error.filename or "output"
        return f"{where}: {error.strerror}. {REMEDIES[error.errno]}."
    # on a CPU, torch says in words alone that memory was refused
    words = ("can't allocate memory", "Storage size calculation overflowed")
    refused = isinstance(error, RuntimeError) and any(each in str(error) for each in words)
    if refused or isinstance(error, MemoryError | torch.OutOfMemoryError):
        return (
            "out of memory. Lower the number of clips at once (batch_size, "
            f"micro_batch_size), their size or the model. ({type(error).__name__}: {error})"
        )
    return None


_OTHER_FOLDER = "Free space or choose another folder, then rerun"
_OTHER_PATH = "Choose another path, or move the existing file or folder"
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _OTHER_FOLDER),
    **dict.fromkeys((errno.EACCES, errno.EROFS, errno.EPERM), _OTHER_FOLDER),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.EISDIR), _OTHER_PATH),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP), _OTHER_PATH),
    errno.ENOENT: "Check the path",
}
"""What to do about what the system refuses; other errors are ours."""


def _complain(message: str, code: int) -> int:
    prefix = "" if _is_main() else f"[rank {os.environ['RANK']}] "
    kind = "error: " if code == 2 else ""
    line = kind + " ".join(message.split())
    print(prefix + line, file=sys.stderr)  # noqa: T201
    if report := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun shows it at its end
        about = {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(report).write_text(json.dumps({"message": about}))
    return code


def _log_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line of the log, which only the main process shows, without its code."""
    logging.getLogger("py.warnings").warning("warning: %s", " ".join(str(message).split()))


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"
