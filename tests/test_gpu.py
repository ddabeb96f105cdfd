"""What only a CUDA device can show: `pytest -m gpu`."""

import pytest
import torch

from benchmarks.gpu_checks import CHECKS
from benchmarks.gpu_models import Machine

pytestmark = pytest.mark.gpu


@pytest.fixture
def machine(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return Machine(torch.device("cuda"), tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "parity_float32",
        "parity_bfloat16",
        "parts_equal_the_whole",
        "compilation",
        "no_hidden_waits",
        "graph_capture",
    ],
)
def test_the_device_gives_what_the_cpu_gives(name, machine):
    torch.manual_seed(0)
    check = CHECKS[name]
    values = check.run(machine)
    for key, limit in check.limits.items():
        assert values[key] <= limit, (key, values)
