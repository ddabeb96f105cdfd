"""Break the commands on purpose, many times, and list what was not handled.

    python -m benchmarks.faults --out runs/faults

kills: SIGKILL at random points, rerun, compare byte for byte with a run that was left alone.
mutations: random changes of configs; each is accepted or refused in one line with exit code 2.
disks: a full or read-only disk at random points; one line, nothing half-written under a final name.
starts: two starts of the same command; one does the work, the other says who holds the folder.
signals: SIGTERM and SIGINT to python, torchrun and accelerate launch; the run is saved.

Each try is a line of results.jsonl, so a campaign that was stopped goes on where it was; the table
is in faults.md. Exit code 1 if anything was found.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from benchmarks.config_mutations import Mutations, refusal
from benchmarks.fault_chain import (
    SCRIPTS,
    Command,
    contents,
    differences,
    kill,
    last_line,
    make_chain,
    run,
    start,
)
from benchmarks.fault_commands import other_commands
from common.cli import main
from common.config import Config

TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1"]
LAUNCHERS = {
    "python": [],
    "torchrun 1": [*TORCHRUN, "1"],
    "torchrun 2": [*TORCHRUN, "2"],
    "accelerate launch 1": [*ACCELERATE, "--num_processes", "1"],
    "accelerate launch 2": [*ACCELERATE, "--num_processes", "2"],
}


@dataclass(frozen=True, kw_only=True)
class Faults(Config):
    """Break the commands on purpose and list what was not handled; rerun to go on."""

    out: Path
    """Folder of the results and of everything made on the way."""
    kills: Annotated[int, Ge(0)] = 100
    """SIGKILLs over all commands."""
    mutations: Annotated[int, Ge(0)] = 2000
    """Changed configs over all commands."""
    disks: Annotated[int, Ge(0)] = 40
    """Full and read-only disks over all commands; needs the right to mount one."""
    starts: Annotated[int, Ge(0)] = 20
    """Pairs of starts over all commands."""
    signals: Annotated[int, Ge(0)] = 10
    """Signals over all launchers."""
    seed: int = 0
    """Decides every random point and change."""


Try = Callable[[int, random.Random], tuple[str, str | None]]
"""Makes one try; returns what was tried and what is wrong with the result, if anything."""


class Campaign:
    """Tries of several kinds against the commands of one chain."""

    def __init__(self, config: Faults):
        self.config = config
        self.root = config.out.resolve()  # the commands run in other folders
        self.root.mkdir(parents=True, exist_ok=True)
        self.chain = make_chain(self.root)
        self.straight: dict[str, tuple[dict[str, Any], float]] = {}

    def reference(self, command: Command) -> tuple[dict[str, Any], float]:
        """Contents and seconds of a run that was left alone, made once."""
        if command.name not in self.straight:
            output, log = self.fresh(command, "straight")
            since = time.perf_counter()
            code = run(command, command.arguments(output), log)
            assert code == 0, f"{command.script} ended with {code}: see {log}"
            self.straight[command.name] = contents(output), time.perf_counter() - since
        return self.straight[command.name]

    def fresh(self, command: Command, kind: str) -> tuple[Path, Path]:
        """An output that does not exist, with a name as long as the others', and an empty log."""
        folder = self.root / "work" / kind / command.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder / command.file, folder / "log"

    def kill(self, number: int, chance: random.Random) -> tuple[str, str | None]:
        """SIGKILL at a random point, then the same command again."""
        command = list(self.chain.values())[number % len(self.chain)]
        expected, seconds = self.reference(command)
        output, log = self.fresh(command, "kill")
        delay = chance.uniform(0, seconds)
        process = start(command, command.arguments(output), log)
        process.join(delay)
        when = f"killed after {delay:.2f} of {seconds:.2f} s" if process.is_alive() else "too late"
        kill(process)
        code = run(command, command.arguments(output), log)
        return f"{command.name}, {when}", self.judge(output, expected, code, log)

    def disk(self, number: int, chance: random.Random) -> tuple[str, str | None]:
        """Too small a disk, or one that cannot be written to; then the same on a large one."""
        command = list(self.chain.values())[number // 2 % len(self.chain)]
        expected, _ = self.reference(command)
        output, log = self.fresh(command, "disk")
        mount = output.parent / "disk"
        mount.mkdir()
        sizes = sum(len(v) for v in expected.values() if isinstance(v, bytes))
        size = 64 + round(chance.uniform(0, 1) * sizes / 1024)
        options = f"size={size}k" if number % 2 else "size=64k,ro"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mount)], check=True)
        try:
            code = run(command, command.arguments(mount / output.name), log)
            wrong = None if code == 0 else refusal(code, log)
            if wrong is None and code == 0:
                found = contents(mount / output.name)
                wrong = (
                    f"exit 0 with {differ}" if (differ := differences(found, expected)) else None
                )
            if (mount / output.name).exists():
                shutil.copytree(mount, output.parent / "copy", symlinks=True)
        finally:
            subprocess.run(["umount", str(mount)], check=True)
        log.write_text("")
        output = output.parent / "copy" / output.name
        code = run(command, command.arguments(output), log)
        return f"{command.name}, {options}", wrong or self.judge(output, expected, code, log)

    def pair(self, number: int, chance: random.Random) -> tuple[str, str | None]:
        """The same command twice, the second some time after the first."""
        command = list(self.chain.values())[number % len(self.chain)]
        expected, seconds = self.reference(command)
        output, log = self.fresh(command, "pair")
        delay = chance.uniform(0, 0.8 * seconds)
        first = start(command, command.arguments(output), log)
        time.sleep(delay)
        second_log = log.with_name("second")
        code = run(command, command.arguments(output), second_log)
        first.join(300)
        tried = f"{command.name}, second start after {delay:.2f} s: {code}"
        wrong = None if code == 0 else refusal(code, second_log)
        if first.exitcode not in (0, 2):
            wrong = f"the first start ended with {first.exitcode}"
        if {first.exitcode, code} == {2}:
            wrong = "both starts gave up"
        return tried, wrong or self.judge(output, expected, 0, log)

    def signal(self, number: int, chance: random.Random) -> tuple[str, str | None]:
        """A signal to a launcher's process: the state is saved and no process is left."""
        name, launcher = list(LAUNCHERS.items())[number % len(LAUNCHERS)]
        which = (signal.SIGTERM, signal.SIGINT)[number // len(LAUNCHERS) % 2]
        command = self.chain["train_vae"]
        output, log = self.fresh(command, "signal")
        script = [*launcher, str(SCRIPTS / command.script)]
        steps = {"train.steps": 100_000, "train.save_every": 1000, "adversarial": None}
        line = [sys.executable, *script, *command.arguments(output, **steps)]
        with open(log, "w") as file:
            process = subprocess.Popen(line, stdout=file, stderr=file, start_new_session=True)
            lines = output / "log.jsonl"
            until = time.monotonic() + 180
            while not (lines.exists() and lines.read_text().count("\n") > 2):
                if process.poll() is not None or time.monotonic() > until:
                    break
                time.sleep(0.1)
            time.sleep(chance.uniform(0, 1))
            process.send_signal(which)
            try:
                code = process.wait(120)
            except subprocess.TimeoutExpired:
                code = None
        tried = f"{name}, {which.name}: exit {code}"
        wrong = None
        if code in (0, None):
            wrong = "the launcher did not end" if code is None else "exit 0 before the end"
        until = time.monotonic() + 60  # a trainer that outlives its launcher saves first
        while (left := orphans(output)) and time.monotonic() < until:
            time.sleep(0.2)
        if left:
            wrong = f"processes are left: {left}"
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if not list(output.glob("checkpoints/step-*/state.json")):
            wrong = "no checkpoint was saved"
        return tried, wrong

    @staticmethod
    def judge(output: Path, expected: dict[str, Any], code: int | None, log: Path) -> str | None:
        """What is wrong with the output of a command that should have ended well."""
        if code != 0:
            return f"the rerun ended with {code}: {last_line(log.read_text(errors='replace'))}"
        differ = differences(contents(output), expected)
        return f"the result differs in {', '.join(differ)}" if differ else None


def orphans(output: Path) -> list[int]:
    """Processes that still work for `output`."""
    found = subprocess.run(
        ["pgrep", "-f", str(output)], capture_output=True, text=True, check=False
    )
    return [int(number) for number in found.stdout.split()]


def tries(config: Faults) -> Iterator[tuple[str, int]]:
    """All tries by campaign and number."""
    for name in ("kills", "mutations", "disks", "starts", "signals"):
        yield from ((name, number) for number in range(getattr(config, name)))


def run_faults(config: Faults) -> None:
    """Make the tries that are missing and write the table."""
    # a shell's background jobs ignore SIGINT, and so would the commands
    signal.signal(signal.SIGINT, signal.default_int_handler)
    campaign = Campaign(config)
    commands = [*list(campaign.chain.values())[1:], *other_commands(campaign.root)]
    mutate = Mutations(campaign.root, commands, config.seed)
    kinds: dict[str, Try] = {
        "kills": campaign.kill,
        "mutations": mutate,
        "disks": campaign.disk,
        "starts": campaign.pair,
        "signals": campaign.signal,
    }
    results = campaign.root / "results.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    done = {(r["campaign"], r["number"]): r for r in map(json.loads, lines)}
    with open(results, "a") as file:
        for name, number in tries(config):
            if (name, number) in done:
                continue
            tried, wrong = kinds[name](number, random.Random(f"{config.seed} {name} {number}"))
            line = {"campaign": name, "number": number, "tried": tried, "finding": wrong}
            done[name, number] = line
            print(json.dumps(line), file=file, flush=True)
            if wrong:
                print(f"{name} {number}: {tried}: {wrong}", flush=True)
    found = [line for line in done.values() if line["finding"]]
    table = ["| campaign | tries | findings |", "|---|---|---|"]
    for name in kinds:
        of_it = [line for line in done.values() if line["campaign"] == name]
        wrong = sum(line["finding"] is not None for line in of_it)
        table.append(f"| {name} | {len(of_it)} | {wrong} |")
    text = "\n".join(table) + "\n"
    (campaign.root / "faults.md").write_text(text)
    print(text)
    sys.exit(bool(found))


if __name__ == "__main__":
    main(Faults, run_faults)
