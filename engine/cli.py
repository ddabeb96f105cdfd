"""One command line for every script: YAML plus flags on a frozen dataclass, one-line errors."""

import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import jsonargparse

Config = TypeVar("Config")

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


class Stopped(Exception):
    """A signal asked for the end and the state is saved; carries the exit code 128 + signal."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.code = 128 + signal_number


def parse(config_class: type[Config], arguments: Sequence[str] | None = None) -> Config:
    """Build `config_class` from `--config file.yaml` and from flags named after its fields.

    `--help` and `--print_config` print and exit, as usual.

    Raises:
        ValueError: an unknown key, a value of the wrong type, or one the dataclass refuses.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help="YAML file")
    parser.add_class_arguments(config_class)
    try:
        values = parser.instantiate(parser.parse_args(arguments))
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"{error}. See --help for the options.") from None
    return config_class(**{field.name: values[field.name] for field in fields(config_class)})  # type: ignore[arg-type]


def main(config_class: type[Config], run: Callable[[Config], Any]) -> None:
    """Parse and run. Exit codes: 0 done; 2 the user's mistake; 128 + n stopped by signal n."""
    sys.exit(_exit_code(config_class, run))


def _exit_code(config_class: type[Config], run: Callable[[Config], Any]) -> int:
    logging.basicConfig(
        level=logging.WARNING if _is_main() else logging.ERROR, format="%(message)s"
    )
    for package in ("data", "engine", "eval", "latte", "vae", "__main__") if _is_main() else ():
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
