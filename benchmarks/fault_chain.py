"""The commands that `benchmarks.faults` breaks: the chain from videos to a score, in seconds each.

A command runs in a forked process of its own, which has torch loaded already.
"""

import json
import os
import re
import runpy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.context import ForkContext, ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from benchmarks.data_stand_ins import moving_noise
from common import stages
from common.stages import call
from data.video.encode import write_video

SCRIPTS = Path(__file__).parents[1] / "scripts"
FORK = get_context("fork")
UNSTABLE = re.compile(r"second|memory|time|date|elapsed|folder|path|out$|pid|host|random_states")
"""JSON keys whose values differ from run to run, or name the folder."""
SKIPPED = re.compile(r"(^|/)(tensorboard|\.lock|.*tfevents|random_states)")
"""Files that are not compared."""


@dataclass(frozen=True)
class Command:
    """A script, its options without the output, and the option that names the output."""

    script: str
    options: dict[str, Any]
    output: str | None = "out"
    """Option that names the output; None where there is none."""
    subcommand: str | None = None
    file: str = "out"
    """Name of the output, with the suffix that the command asks for."""

    @property
    def name(self) -> str:
        """The script's name and the subcommand's."""
        stem = self.script.removesuffix(".py")
        return f"{stem}_{self.subcommand}" if self.subcommand else stem

    def arguments(self, output: Path, **changes: Any) -> list[str]:
        """Command line that writes to `output`."""
        values = {**self.options, **self.at(output), **changes}
        flags = [f"--{name}={_text(value)}" for name, value in values.items()]
        return ([self.subcommand] if self.subcommand else []) + flags

    def at(self, output: Path) -> dict[str, Any]:
        """The option that makes the command write to `output`."""
        return {} if self.output is None else {self.output: output}


Launch = Callable[[Command, list[str], Path], int | None]


def make_chain(root: Path, launch: Launch | None = None) -> dict[str, Command]:
    """Inputs for every command below `root`, made once, and the commands that read them.

    Args:
        launch: starts a command, with its arguments and the file for what it prints, and returns
            its exit code; by default in a forked process.

    Raises:
        ValueError: a command failed; names the file that holds what it printed.
    """
    videos = root / "videos"
    for number in range(6):
        path = videos / "ab"[number % 2] / f"{number}.mp4"
        if not path.exists():
            clip = moving_noise(14 + number, 64, 64)[:, ::-1] // (1 + number % 3)
            write_video(path, clip, 25)
    inputs = root / "inputs"
    shards = inputs / "shards"
    size = {"height": 16, "width": 16}
    clips = {"frames": 5, **size}
    train = {
        "global_batch_size": 2,
        "learning_rate": 1e-3,
        "log_every": 1,
        "save_every": 3,
        "steps": 12,
    }
    taken = {"data.folder": shards, **{f"data.{name}": value for name, value in clips.items()}}
    training = {f"train.{name}": value for name, value in train.items()}
    vae = {"z_dim": 4, "dim": 4, "channel_multipliers": [1, 1, 2, 2], "num_blocks": 1}
    model = {f"model.{name}": value for name, value in vae.items()}
    gan = {"start_step": 4, "warmup_steps": 2, "discriminator": {"channels": 16, "layers": 1}}
    chain = [
        Command("make_shards.py", {"root": videos, "short_side": 32, "workers": 1,
                "videos_per_shard": 2, "min_frames": 1}, subcommand="folder"),
        Command("train_vae.py", {**training, **model, **taken, "data.flip": True,
                "loss.perceptual": "none", "adversarial": gan, "num_previews": 1}, "train.folder"),
        Command("cache_latents.py", {"vae": inputs / "train_vae" / "export", **taken,
                "data.stride": 1, "clips_per_video": 2, "items_per_shard": 3, "workers": 0,
                "batch_size": 2}),
        Command("train_latte.py", {**training, "latents": inputs / "cache_latents",
                "model.size": "custom", "model.hidden_size": 16, "model.depth": 2,
                "model.num_heads": 2, "model.class_conditional": True}, "train.folder"),
        Command("sample.py", {"latte": inputs / "train_latte" / "export",
                "vae": inputs / "train_vae" / "export", "num_clips": 6, "batch_size": 2,
                "sampler.steps": 3}),
        Command("train_classifier.py", {**training, "train.steps": 3, **taken, "channels": 8},
                "train.folder"),
        Command("eval_fvd.py", {"real": shards, "fake": [str(inputs / "sample")],
                "classifier": inputs / "train_classifier" / "export", **clips, "stride_real": 1,
                "num_clips": 6, "resamples": 2}, file="out.json"),
    ]  # fmt: skip
    commands = {command.name: command for command in chain}
    for command in chain:
        output = shards if command.script == "make_shards.py" else inputs / command.name
        output = output.with_suffix(Path(command.file).suffix)
        if not output.exists():
            code = (launch or run)(command, command.arguments(output), root / "inputs.log")
            if code != 0:
                raise ValueError(f"{command.script} ended with {code}: see {root / 'inputs.log'}")
    return commands


def start(
    command: Command,
    arguments: list[str],
    log: Path,
    *,
    context: ForkContext | ForkServerContext = FORK,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Begin the command in a process group of its own; what it prints goes to `log`.

    Args:
        context: where processes come from.
        environment: what is set for it.
    """
    options = {"leads": True, "environment": {**(environment or {})}}
    process = context.Process(
        target=_main, args=(command.script, arguments, str(log)), kwargs=options
    )
    process.start()
    return process


def run(
    command: Command, arguments: list[str], log: Path, limit: float = 300.0, **options: Any
) -> int | None:
    """Exit code of the command; None if it had to be killed at the time limit, seconds.

    Args:
        options: of `start`.
    """
    process = start(command, arguments, log, **options)
    process.join(limit)
    if process.is_alive():
        kill(process)
        return None
    return process.exitcode


def kill(process: BaseProcess) -> None:
    """SIGKILL to the process and all that it started."""
    assert process.pid is not None
    for _ in range(100):  # until it leads its own group
        try:
            os.killpg(process.pid, 9)
            break
        except ProcessLookupError:
            if not process.is_alive():
                break
            time.sleep(0.01)
    process.join()


def last_line(text: str) -> str:
    """The last line that a command printed, cut short."""
    return (text.strip().splitlines() or ["(nothing printed)"])[-1][:300]


def contents(output: Path) -> dict[str, Any]:
    """What a command wrote, comparable from run to run."""
    files = [output] if output.is_file() else sorted(f for f in output.rglob("*") if f.is_file())
    found: dict[str, Any] = {}
    for file in files:
        name = str(file.relative_to(output)) if output.is_dir() else ""
        if SKIPPED.search(name):
            continue
        if file.suffix == ".json":
            found[name] = _stable(json.loads(file.read_text()))
        elif file.suffix == ".jsonl":
            found[name] = [_stable(json.loads(line)) for line in file.read_text().splitlines()]
        elif file.suffix != ".yaml":  # config.yaml names the folder
            found[name] = file.read_bytes()
    return found


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of the files that are not the same in both."""
    return [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _stable(v) for k, v in value.items() if not UNSTABLE.search(k)}
    return [_stable(v) for v in value] if isinstance(value, list) else value


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else json.dumps(value)


def _main(
    script: str,
    arguments: list[str],
    log: str,
    leads: bool = True,
    environment: Mapping[str, str] | None = None,
) -> None:
    os.environ |= environment or {}
    if leads:
        os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    AcceleratorState._reset_state(reset_partial_state=True)
    stages.call = partial(_call_in_fork, log)
    sys.argv = [str(SCRIPTS / script), *arguments]
    runpy.run_path(str(SCRIPTS / script), run_name="__main__")


def _call_in_fork(log: str, command: Sequence[str]) -> int:
    """A stage of a longer command without the seconds that loading torch takes."""
    python, script, *arguments = command
    if python != sys.executable:
        return call(command)
    process = FORK.Process(target=_main, args=(Path(script).name, arguments, log, False))
    process.start()
    process.join()
    if process.exitcode:
        raise ValueError(f"{script} ended with exit code {process.exitcode}")
    return 0
