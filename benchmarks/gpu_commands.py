"""The checks of `benchmarks.gpu_acceptance` that start the project's commands, as a user does."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.fault_chain import SCRIPTS, Command, contents, differences, last_line, make_chain
from benchmarks.faults import LAUNCHERS

if TYPE_CHECKING:
    from benchmarks.gpu_checks import Machine

ROOT = Path(__file__).parents[1]
STAGES = ("0_image_256", "1_video_256", "2_video_512", "3_gan_mixed")
TOLERANCE = 0.1, 1.5  # of an estimate of memory: a share of it, and GB


def chain(machine: "Machine") -> dict[str, Any]:
    """Every command from videos to a Fréchet distance, tiny, on the device."""
    since = time.perf_counter()
    commands = make_chain(machine.folder, launch)
    return {"commands": len(commands), "took": time.perf_counter() - since}


def stop_and_resume(machine: "Machine") -> dict[str, Any]:
    """SIGTERM in the middle of a GAN run saves; the same command again ends it."""
    command = make_chain(machine.folder, launch)["train_vae"]
    output = machine.folder / "stopped" / str(time.time_ns())
    line = [sys.executable, str(SCRIPTS / command.script), *command.arguments(output)]
    process = subprocess.Popen(line, env=_environment(machine), stderr=subprocess.DEVNULL)
    log = output / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code = process.wait(60)
    assert code in (0, 143), f"exit code {code} after SIGTERM"
    assert launch(command, command.arguments(output), output.with_suffix(".log")) == 0
    straight = machine.folder / "inputs" / "train_vae" / "export"
    return {"code": code, "exports_differ": len(differences(contents(output / "export"),
            contents(straight)))}  # fmt: skip


def launchers(machine: "Machine") -> dict[str, Any]:
    """Training with DDP and with FSDP in one process."""
    command = make_chain(machine.folder, launch)["train_latte"]
    fsdp = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--config_file",
            str(ROOT / "configs" / "accelerate" / "fsdp.yaml")]  # fmt: skip
    values = {}
    for name, start in {"ddp": LAUNCHERS["torchrun 1"], "fsdp": fsdp}.items():
        output = machine.folder / name / str(time.time_ns())
        line = [sys.executable, *start, str(SCRIPTS / command.script), *command.arguments(output)]
        done = _call(line, machine)
        assert done.returncode == 0, f"{name}: {last_line(done.stderr)}"
        values[name] = done.returncode
    return values


def memory_estimates(machine: "Machine") -> dict[str, Any]:
    """A step's peak memory against its estimate, for every stage of the VAE's training."""
    commands = make_chain(machine.folder, launch)
    shards = commands["train_vae"].options["data.folder"]
    values: dict[str, Any] = {}
    for stage in STAGES:
        config = ROOT / "configs" / "vae" / f"{stage}.yaml"
        flags = [f"--data.folder={shards}", "--loss.perceptual=none", "--init_from=null"]
        flags += [
            f"--train.folder={machine.folder / 'dry' / stage}",
            "--dry_run",
            "--held_out=null",
        ]
        flags += ["--train.evaluate_every=null"]
        line = [sys.executable, str(SCRIPTS / "train_vae.py"), f"--config={config}", *flags]
        done = _call(line, machine)
        assert done.returncode == 0, f"{stage}: {last_line(done.stderr)}"
        estimated, measured = (
            float(re.search(rf"memory, {kind}: ([\d.]+) GB", done.stdout)[1])  # type: ignore[index]
            for kind in ("estimated", "measured")
        )
        values |= {f"{stage}_estimated_gb": estimated, f"{stage}_measured_gb": measured}
        allowed = TOLERANCE[0] * estimated + TOLERANCE[1]
        excess = abs(measured - estimated) - allowed
        values["excess_gb"] = max(values.get("excess_gb", excess), excess)
    return values


def out_of_memory(machine: "Machine") -> dict[str, Any]:
    """Too large a batch ends with one line and exit code 2, before the first step."""
    command = make_chain(machine.folder, launch)["train_vae"]
    output = machine.folder / "oom" / str(time.time_ns())
    sizes = {
        "train.global_batch_size": 4096,
        "data.height": 1024,
        "data.width": 1024,
        "model.dim": 64,
    }
    line = [sys.executable, str(SCRIPTS / command.script), *command.arguments(output, **sizes)]
    done = _call(line, machine)
    assert done.returncode == 2, f"exit code {done.returncode}: {last_line(done.stderr)}"
    assert "Traceback" not in done.stderr, last_line(done.stderr)
    return {"code": done.returncode}


def pytest_gpu(machine: "Machine") -> dict[str, Any]:
    """The tests that need a GPU."""
    done = _call([sys.executable, "-m", "pytest", "-q", "-m", "gpu"], machine)
    assert done.returncode == 0, last_line(done.stdout)
    return {"summary": last_line(done.stdout)}


def launch(command: Command, arguments: list[str], log: Path) -> int:
    """Exit code of a command in a new process: CUDA does not survive a fork."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        line = [sys.executable, str(SCRIPTS / command.script), *arguments]
        return subprocess.run(line, stdout=file, stderr=file, check=False).returncode


def _call(line: list[str], machine: "Machine") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        line, cwd=ROOT, env=_environment(machine), capture_output=True, text=True, check=False
    )


def _environment(machine: "Machine") -> dict[str, str]:
    hidden = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"} if machine.is_tiny else {}
    return {**os.environ, **hidden}
