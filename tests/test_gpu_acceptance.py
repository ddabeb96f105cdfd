"""The command for a GPU runs to its end on a CPU, tiny, and records failures without stopping."""

import pytest
import torch

from benchmarks import gpu_acceptance
from benchmarks.gpu_acceptance import GPUAcceptance
from benchmarks.gpu_checks import CHECKS, Check, hot_calls
from benchmarks.gpu_models import Machine
from common.cli import parse
from common.files import read_json

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute"),  # of torch, in tracing
]


def test_every_check_runs_tiny_on_a_cpu(tmp_path):
    config = GPUAcceptance(out=tmp_path / "gpu.json", device="cpu", seconds=600)
    with pytest.raises(SystemExit) as ended:
        gpu_acceptance.run(config)
    records = read_json(tmp_path / "gpu.json")["checks"]
    assert records.keys() == CHECKS.keys()
    failed = {name: record for name, record in records.items() if record["state"] == "failed"}
    assert not failed
    assert ended.value.code == 0
    for name, record in records.items():
        assert (record["state"] == "skipped") == CHECKS[name].needs_cuda


def test_a_failure_is_recorded_and_the_others_still_run(tmp_path, monkeypatch):
    def broken(machine):
        raise RuntimeError("on purpose")

    checks = {"broken": Check(broken), "rates": CHECKS["rates"]}
    monkeypatch.setattr(gpu_acceptance, "CHECKS", checks)
    with pytest.raises(SystemExit) as ended:
        gpu_acceptance.run(GPUAcceptance(out=tmp_path / "gpu.json", device="cpu"))
    assert ended.value.code == 1
    records = read_json(tmp_path / "gpu.json")["checks"]
    assert records["broken"]["state"] == "failed"
    assert records["broken"]["reason"] == "RuntimeError: on purpose"
    assert records["rates"]["state"] == "passed"


def test_an_unknown_check_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no check nonsense: use rates"):
        parse(GPUAcceptance, ["--out", str(tmp_path / "x"), "--only=[nonsense]"])


def test_what_must_not_wait_on_a_gpu_runs_on_a_cpu(tmp_path):
    """Without that, only a GPU would show a mistake in these calls."""
    for name, call in hot_calls(Machine(torch.device("cpu"), tmp_path)).items():
        assert call().isfinite().all(), name
