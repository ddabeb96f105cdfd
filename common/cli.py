"""One command line for every script: YAML plus flags on a frozen dataclass, one-line errors."""

import errno
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any, TypeVar, get_origin

import jsonargparse

Config = TypeVar("Config")

PACKAGES = ("common", "data", "engine", "eval", "latte", "vae", "__main__")

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


class Stopped(Exception):
    """A signal asked for the end and the state is saved; carries the exit code 128 + signal."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.code = 128 + signal_number


def parse(
    config_class: type[Config] | Mapping[str, type[Config]],
    arguments: Sequence[str] | None = None,
) -> Config:
    """Build `config_class` from `--config file.yaml` and from flags named after its fields.

    `--help` and `--print_config` print and exit, as usual. `--flag` alone means `--flag true`. The
    flag of a list may be repeated, once per value: `--vae A --vae B`.

    Args:
        config_class: a dataclass; or several by name, one of which the first argument names.
        arguments: by default those of the command line.

    Raises:
        ValueError: an unknown key, a value of the wrong type, or one the dataclass refuses.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if isinstance(config_class, Mapping):
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        choices = parser.add_subcommands(dest="name")
        for name, choice in config_class.items():
            summary = (choice.__doc__ or "").partition("\n")[0]
            subparser = _parser(choice)
            choices.add_subcommand(name, subparser, help=summary)
            if arguments[:1] == [name]:
                arguments = _repeatable(subparser, arguments)
    else:
        parser = _parser(config_class)
        arguments = _repeatable(parser, arguments)
    try:
        values = parser.instantiate(parser.parse_args(arguments))
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"{error}. See --help for the options.") from None
    if isinstance(config_class, Mapping):
        config_class, values = config_class[values.name], values[values.name]
    return config_class(**{field.name: values[field.name] for field in fields(config_class)})  # type: ignore[arg-type]


def main(
    config_class: type[Config] | Mapping[str, type[Config]], run: Callable[[Config], Any]
) -> None:
    """Parse and run. Exit codes: 0 done; 2 the user's mistake; 128 + n stopped by signal n."""
    sys.exit(_exit_code(config_class, run))


def _parser(config_class: type) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help="YAML file")
    parser.add_class_arguments(config_class)
    for action in parser._actions:
        if getattr(action, "_typehint", None) is bool:
            action.nargs, action.const = "?", "true"
    return parser


def _repeatable(parser: jsonargparse.ArgumentParser, arguments: list[str]) -> list[str]:
    """`--list A` as `--list+ A`, which appends; `--list "[A, B]"` stays as it is."""
    lists = {
        option
        for action in parser._actions
        if get_origin(getattr(action, "_typehint", None)) is list
        for option in action.option_strings
    }
    changed = list(arguments)
    for i, (flag, value) in enumerate(pairwise([*arguments, ""])):
        name, equals, given = flag.partition("=")
        if name in lists and not (given if equals else value).startswith("["):
            changed[i] = f"{name}+{equals}{given}"
    return changed


def _exit_code(
    config_class: type[Config] | Mapping[str, type[Config]], run: Callable[[Config], Any]
) -> int:
    logging.basicConfig(
        level=logging.WARNING if _is_main() else logging.ERROR, format="%(message)s"
    )
    for package in PACKAGES if _is_main() else ():
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        run(parse(config_class))
    except ValueError as error:
        if os.environ.get("IVVAE_TRACEBACK"):
            raise
        return _complain(str(error), 2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        reason = f"{error.filename or 'output'}: {error.strerror}"
        return _complain(f"{reason}. Free space or choose another folder, then rerun.", 2)
    except Stopped as stopped:
        return _complain(str(stopped), stopped.code)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    return 0


def _complain(message: str, code: int) -> int:
    prefix = "" if _is_main() else f"[rank {os.environ['RANK']}] "
    kind = "error: " if code == 2 else ""
    print(prefix + kind + " ".join(message.split()), file=sys.stderr)  # noqa: T201
    return code


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"
