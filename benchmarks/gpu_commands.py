"""The checks of `benchmarks.gpu_acceptance` that start the project's commands, as a user does.

A command runs in a new process that has never touched CUDA; one server, from which they come, has
loaded torch once for all of them.
"""

import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.fault_chain import (
    SCRIPTS,
    Command,
    Launch,
    contents,
    differences,
    last_line,
    make_chain,
    run,
    start,
)
from benchmarks.faults import LAUNCHERS
from benchmarks.gpu_models import Machine
from common.perceptual import PerceptualLoss
from engine.run_folder import read_log
from vae import VAEConfig

ROOT = Path(__file__).parents[1]
SERVER = get_context("forkserver")
COMMANDS = "cache_latents eval_fvd make_shards sample train_classifier train_latte train_vae"
SERVER.set_forkserver_preload(["tensorboard", *(f"scripts.{name}" for name in COMMANDS.split())])
ONE_RANK = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # fmt: skip
"""What a launcher sets for the only process."""
STAGES = ("0_image_256", "1_video_256", "2_video_512", "3_gan_mixed")
TOLERANCE = 0.1, 1.5  # of an estimate of memory: a share of it, and GB


def chain(machine: Machine) -> dict[str, Any]:
    """Every command from videos to a Fréchet distance, tiny, on the device."""
    return {"commands": len(_chain(machine))}


def thirty_steps(machine: Machine) -> dict[str, Any]:
    """Thirty steps of every command that has steps, tiny: losses are finite."""
    commands, steps = _chain(machine), 6 if machine.is_tiny else 30
    values: dict[str, Any] = {"steps": steps}
    for name in ("train_vae", "train_latte", "train_classifier"):
        changes = {"train.steps": steps, "train.save_every": steps, "train.log_every": 1}
        log = read_log(_run(commands[name], machine, _fresh(machine, "steps"), changes))
        assert len(log) == steps, f"{name}: {len(log)} of {steps} steps are logged"
        losses = [line["loss"] for line in log]
        assert all(map(math.isfinite, losses)), f"{name}: losses {losses}"
        values[f"{name}_seconds"] = min(line["seconds_per_step"] for line in log)
        values[f"{name}_loss"] = losses[-1]
    clips = _run(commands["sample"], machine, _fresh(machine, "steps"), {"sampler.steps": steps})
    assert len([*clips.glob("clip-*")]) == commands["sample"].options["num_clips"]
    return values


def vae_training(machine: Machine) -> dict[str, Any]:
    """Seconds and memory of a training step on one clip: VAE and discriminator in bf16, LPIPS with
    random weights, both optimizers, and compiled as by default."""
    commands, steps = _chain(machine), 2 if machine.is_tiny else 30
    weights = machine.folder / "vgg.pth"
    if not weights.exists():
        net = PerceptualLoss("vgg", None).lpips.net
        state = net.state_dict().items()  # slice1.0.weight is features.0.weight of torchvision
        torch.save({f"features.{name.partition('.')[2]}": value for name, value in state}, weights)
    changes: dict[str, Any] = {
        "train.steps": steps,
        "train.save_every": steps,
        "train.log_every": 1 if machine.is_tiny else 5,  # a log waits for the device
        "train.global_batch_size": 1,
        "train.precision": "bf16",
        "loss.perceptual": "vgg",
        "loss.perceptual_weights": weights,
        "num_previews": 0,
    }
    if machine.is_tiny:
        changes |= {"adversarial": {"discriminator": {"channels": 16, "layers": 1}}}
    else:
        released = asdict(VAEConfig())
        changes |= {
            name: released[name.removeprefix("model.")]
            for name in commands["train_vae"].options
            if name.startswith("model.")
        }
        changes |= {"data.frames": 17, "data.height": 256, "data.width": 256}
        changes |= {"data.short_clips": "loop", "adversarial": {"start_step": 0}}
    log = read_log(_run(commands["train_vae"], machine, _fresh(machine, "step"), changes))
    parts = ("forward", "backward", "discriminator", "optimizer")
    times = [sum(line.get(f"seconds/{part}", 0) for part in parts) for line in log]
    return {
        "step_seconds": min(times),
        "peak_gb": log[-1]["memory_gb"],
        "compiled_graphs": log[-1].get("compiled_graphs", 0),
    }


def stop_and_resume(machine: Machine) -> dict[str, Any]:
    """SIGTERM in the middle of a GAN run saves; the same command again ends it."""
    command = _chain(machine)["train_vae"]
    output = _fresh(machine, "stopped")
    straight = machine.folder / "inputs" / "train_vae" / "export"
    arguments, log = command.arguments(output), output.with_suffix(".log")
    options = {"context": SERVER, "environment": _environment(machine)}
    process = start(command, arguments, log, **options)  # type: ignore[arg-type]
    lines = output / "log.jsonl"
    while process.is_alive() and not (lines.exists() and lines.read_text().count("\n") > 3):
        time.sleep(0.05)
    if process.is_alive():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    code = process.exitcode
    assert code in (0, 143), f"exit code {code} after SIGTERM"
    ended = _launch(machine)(command, arguments, log)
    assert ended == 0, f"exit code {ended} at the end: {last_line(log.read_text())}"
    differing = differences(contents(output / "export"), contents(straight))
    return {"code": code, "exports_differ": len(differing)}


def launchers(machine: Machine) -> dict[str, Any]:
    """Training with DDP and with FSDP in one process. Tiny, what launchers set takes their place,
    because they load torch twice each."""
    command, changes = _chain(machine)["train_latte"], {"train.steps": 3}
    fsdp = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--config_file",
            str(ROOT / "configs" / "accelerate" / "fsdp.yaml")]  # fmt: skip
    values = {}
    for name, begin in {"ddp": LAUNCHERS["torchrun 1"], "fsdp": fsdp}.items():
        output = _fresh(machine, name)
        if machine.is_tiny:
            asked = {"ACCELERATE_USE_FSDP": str(name == "fsdp").lower(), "FSDP_VERSION": "2"}
            _run(command, machine, output, changes, {**ONE_RANK, **asked})
        else:
            arguments = command.arguments(output, **changes)
            done = _call([sys.executable, *begin, str(SCRIPTS / command.script), *arguments])
            assert done.returncode == 0, f"{name}: {last_line(done.stderr)}"
        values[f"{name}_steps"] = len(read_log(output))
    return values


def memory_estimates(machine: Machine) -> dict[str, Any]:
    """A step's peak memory against its estimate, for every stage of the VAE's training."""
    shards = _chain(machine)["train_vae"].options["data.folder"]
    values: dict[str, Any] = {}
    for stage in STAGES:
        options = {
            "config": ROOT / "configs" / "vae" / f"{stage}.yaml",
            "data.folder": shards,
            "loss.perceptual": "none",
            "init_from": None,
            "dry_run": True,
            "held_out": None,
            "train.evaluate_every": None,
        }
        command = Command("train_vae.py", options, "train.folder")
        output = _fresh(machine, stage)
        text = _run(command, machine, output, {}).with_suffix(".log").read_text()
        estimated, measured = (
            float(re.search(rf"memory, {kind}: ([\d.]+) GB", text)[1])  # type: ignore[index]
            for kind in ("estimated", "measured")
        )
        values |= {f"{stage}_estimated_gb": estimated, f"{stage}_measured_gb": measured}
        allowed = TOLERANCE[0] * estimated + TOLERANCE[1]
        excess = abs(measured - estimated) - allowed
        values["excess_gb"] = max(values.get("excess_gb", excess), excess)
    return values


def out_of_memory(machine: Machine) -> dict[str, Any]:
    """Too large a batch ends with one line and exit code 2, before the first step."""
    command = _chain(machine)["train_vae"]
    output = _fresh(machine, "oom")
    sizes = {
        "train.global_batch_size": 4096,
        "data.height": 1024,
        "data.width": 1024,
        "model.dim": 64,
    }
    log = output.with_suffix(".log")
    code = _launch(machine)(command, command.arguments(output, **sizes), log)
    text = log.read_text()
    assert code == 2, f"exit code {code}: {last_line(text)}"
    assert "Traceback" not in text, last_line(text)
    return {"code": code}


def pytest_gpu(machine: Machine) -> dict[str, Any]:
    """The tests that need a GPU."""
    done = _call([sys.executable, "-m", "pytest", "-q", "-m", "gpu"])
    assert done.returncode == 0, last_line(done.stdout)
    return {"summary": last_line(done.stdout)}


def _chain(machine: Machine) -> dict[str, Command]:
    return make_chain(machine.folder, _launch(machine))


def _launch(machine: Machine) -> Launch:
    return partial(run, context=SERVER, environment=_environment(machine))


def _fresh(machine: Machine, name: str) -> Path:
    """An output that is not there yet, in a folder that is."""
    (machine.folder / name).mkdir(parents=True, exist_ok=True)
    return machine.folder / name / str(time.time_ns())


def _run(
    command: Command,
    machine: Machine,
    output: Path,
    changes: dict[str, Any],
    environment: dict[str, str] | None = None,
) -> Path:
    """Run a command to its end; returns its output, beside which a log has what it printed."""
    log, environment = output.with_suffix(".log"), {**_environment(machine), **(environment or {})}
    arguments = command.arguments(output, **changes)
    code = run(command, arguments, log, context=SERVER, environment=environment)
    assert code == 0, f"{command.script}: exit code {code}: {last_line(log.read_text())}"
    return output


def _call(line: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


def _environment(machine: Machine) -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"} if machine.is_tiny else {}
