"""Stages of a longer command, each done once: a record tells with which settings and inputs."""

import datetime
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.cli import Stopped
from common.files import expand_names, read_json, read_options, sampled_sha256, write_json
from common.measure import GIGABYTE, cpu_seconds, max_rss_bytes, reset_peak_memory
from common.output_folder import Input, describe_identity, identity_changes, remove_temporary

OUTPUTS = ("out", "train.folder", "card", "mp4", "gif", "feature_cache")
"""Options of commands that name what they write; every other path is of what they read."""
CONTENTS = (
    *("index.json", "manifest.json", "samples.json", "identity.json", "metrics.json", "log.jsonl"),
    *("config.json", "training.json", "model.safetensors", "ema/model.safetensors"),
    "diffusion_pytorch_model.safetensors",
)
"""Files that tell what a folder holds: shards, latents, clips, results, weights."""


def run_stage(
    record: Path,
    work: Callable[[], int],
    *,
    settings: Mapping[str, Any],
    inputs: Sequence[Path] = (),
) -> dict[str, Any]:
    """Do `work` unless `record` says that it was done with the same; returns the record.

    Args:
        record: JSON file, written when the work is done.
        work: returns its peak memory, bytes.
        settings: what decides the result besides `inputs`, for JSON.
        inputs: files that the result depends on, such as weights.

    Returns:
        `seconds` on the clock, `cpu_seconds` of all processors together and `memory_gb` of the
        work, when it was `finished`, and what it was done with.

    Raises:
        ValueError: it was done with other settings or inputs, or an input is missing.
    """
    print(f"[{record.stem}] is there already" if record.exists() else f"\n[{record.stem}]")  # noqa: T201
    for path in inputs:
        if not path.is_file():
            raise ValueError(f"{path}: no such file; the stage before makes it")
    hashes = {
        str(path): Input(str(path), sampled_sha256(path))
        if path.suffix == ".tar"
        else Input.file(path)
        for path in inputs
    }
    if record.exists():
        found = read_json(record)
        if changes := identity_changes(found, settings, hashes):
            raise ValueError(
                f"{record}: was made with other settings or inputs: {'; '.join(changes)}. Use "
                "the same, choose another folder, or delete this file and what the stage made."
            )
        return found
    remove_temporary(record.parent)
    start, start_cpu = time.perf_counter(), cpu_seconds()
    memory = work()
    cost = {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(cpu_seconds() - start_cpu, 1),
        "memory_gb": round(memory / GIGABYTE, 3),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(),
    }
    done = {**describe_identity(settings, hashes), **cost}
    write_json(record, done)
    return done


def call(command: Sequence[str]) -> int:
    """Run a command in a process of its own, on the same terminal, and wait for it.

    SIGTERM is passed on, so that the command saves first.

    Returns:
        Its peak memory, bytes.
    Raises:
        ValueError: it failed, and its own message is above; or it cannot be started.
        Stopped: it was stopped by a signal.
    """
    shown = shlex.join(command)
    print(f"$ {shown}", flush=True)  # noqa: T201
    reset_peak_memory()  # which a new process inherits from the one that starts it
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        raise ValueError(f"{command[0]}: cannot be started ({error.strerror})") from None
    passed: list[int] = []

    def pass_on(number: int, _: object) -> None:
        passed.append(number)
        os.kill(process.pid, number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:  # the command got the signal too, and saves
        passed.append(signal.SIGINT)
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        signal.signal(signal.SIGTERM, before)
    process.returncode = code = os.waitstatus_to_exitcode(status)
    if code > 128 or code < 0 or (code and passed):  # torchrun says 1 for any signal
        number = passed[-1] if passed else code - 128 if code > 128 else -code
        raise Stopped(f"{shown} was stopped. Run the same command to go on.", number)
    if code:
        raise ValueError(f"{shown} ended with exit code {code}; its message is above")
    return max_rss_bytes(usage)


@dataclass(frozen=True, kw_only=True)
class CommandStages:
    """Commands of the user as stages, each in a process of its own."""

    scripts: Path
    """Folder of the commands."""
    launcher: str = sys.executable
    """What starts them, such as "accelerate launch"."""
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The records of all that were run or found done, by their names without `.json`."""

    def run(
        self,
        record: Path,
        script: str,
        options: Mapping[str, Any] | None = None,
        *,
        config: Path | None = None,
    ) -> dict[str, Any]:
        """Run a command unless `record` says that it was done with the same; returns the record.

        What the folders and files that it reads hold is part of that, such as weights and shards.

        Args:
            record: JSON file, written when the command is done.
            script: such as `train_vae.py`.
            options: name to value, without the dashes; they overrule the config.
            config: YAML file of further options.

        Raises:
            ValueError: the command failed, or was done before with other options or inputs.
        """
        options = dict(options or {})
        flags = {f"--{name}": _flag(value) for name, value in options.items()}
        command = [*shlex.split(self.launcher), str(self.scripts / script)]
        command += ["--config", str(config)] if config else []
        command += [f"{name}={value}" for name, value in flags.items()]
        settings = {config.name: config.read_text()} if config else {}
        settings = settings | ({"options": flags} if flags else {})
        given = (_flat(read_options(config)) if config else {}) | options
        inputs = [
            file
            for name, value in given.items()
            if name not in OUTPUTS
            for text in (value if isinstance(value, list | tuple) else [value])
            for file in _contents(text)
        ]
        done = run_stage(record, lambda: call(command), settings=settings, inputs=inputs)
        self.done[record.stem] = done
        return done


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def _contents(value: Any) -> list[Path]:
    """Files that tell what an option's value stands for; none where it is no path, or of others'.

    A path may have a label and a kind before it, as in `label=kind:path`.
    """
    if not isinstance(value, str | Path):
        return []
    text = str(value)
    unnamed = text.partition("=")[2]
    for each in filter(None, (text, unnamed, (unnamed or text).partition(":")[2])):
        places = expand_names(each) if each.endswith(".tar") else [each]
        names = [*places, *(f"{place}/{name}" for place in places for name in CONTENTS)]
        if files := [Path(name) for name in names if os.path.isfile(name)]:
            return files
    return []


def _flag(value: Any) -> str:
    """As the command line takes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value)) if isinstance(value, tuple) else str(value)
