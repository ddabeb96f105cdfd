"""How many groups run at once: the estimate of memory, the budget, `chunk_groups`."""

from types import SimpleNamespace

import psutil
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common import measure
from common.measure import LiveMemory
from tests.builders.tiny_vae import LONG, TINY, make, video
from vae import VAEConfig, VideoVAE, memory
from vae.memory import LIVE_MAPS, groups_that_fit, kept_values, largest_map, largest_tensor


def chunks_run(model, monkeypatch):
    """Latent frames of every decoder run from now on."""
    sizes, step = [], model.decode_step
    monkeypatch.setattr(
        model, "decode_step", lambda z, *rest: (sizes.append(z.shape[2]), step(z, *rest))[1]
    )
    return sizes


def test_all_groups_run_at_once_where_gradients_are_needed(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    model, z = make(), torch.zeros(1, 4, 6, 1, 1)
    sizes = chunks_run(model, monkeypatch)
    model.decode(z)
    assert sizes == [6]
    with torch.no_grad():
        model.decode(z)
    assert sizes == [6, 2, 1, 1, 1, 1]
    model.requires_grad_(False)
    model.decode(z, chunk_groups=3)
    assert sizes[6:] == [4, 2]
    model.decode(z.requires_grad_())
    assert sizes[8:] == [6]


@pytest.mark.parametrize("chunk_groups", [0, -1])
def test_no_groups_at_once_is_refused(chunk_groups):
    with pytest.raises(ValueError, match=rf"chunk_groups={chunk_groups} .* 1"):
        make().encode(video(5), chunk_groups=chunk_groups)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        LONG,
        VAEConfig(dim=8),
        VAEConfig(dim=8).image(),
        *(
            VAEConfig.preset(name, dim=8)
            for name in ("baseline", "baseline_gcconv", "ktc", "ivvae_3d3d")
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_the_estimate_of_memory_bounds_what_is_used(config, autocast):
    model = VideoVAE(config)
    side = 8 * config.spatial_ratio
    for groups in (1, 4):
        frames = 1 + groups * config.temporal_ratio
        estimate = LIVE_MAPS * largest_map(config) * frames + kept_values(config)
        estimate *= side * side * (2 if autocast else 4)
        for step, x in (
            (model.encode_step, torch.zeros(1, 3, frames, side, side)),
            (model.decode_step, torch.zeros(1, config.z_dim, 1 + groups, 8, 8)),
        ):
            with (
                torch.no_grad(),
                torch.autocast("cpu", torch.bfloat16, enabled=autocast),
                LiveMemory() as live,
                LargestTensor() as largest,
            ):
                step(x)
            assert estimate / 4 < live.peak < estimate
            assert largest.numel <= frames * (side + 2) ** 2 * largest_tensor(config)


class LargestTensor(TorchDispatchMode):
    """Within, the most values of a tensor that an operation gives."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        found = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *found])
        return result


def test_no_tensor_passes_what_32_bits_index(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1 << 50)
    x = torch.zeros(1, 3, 201, 8, 8, dtype=torch.bfloat16)
    for config in (VAEConfig(), VAEConfig.preset("baseline")):
        groups = groups_that_fit(x, (201, 720, 1280), config)
        values = 722 * 1282 * largest_tensor(config)
        assert (1 + 4 * groups) * values < 2**31 <= (1 + 4 * (groups + 1)) * values


def test_the_estimate_is_of_the_type_that_autocast_computes_in(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 10 << 30)
    x = torch.zeros(1, 3, 81, 256, 256)
    single = groups_that_fit(x, (81, 256, 256), VAEConfig())
    with torch.autocast("cpu", torch.bfloat16):
        half = groups_that_fit(x, (81, 256, 256), VAEConfig())
    assert half > 1.8 * single > 0


@torch.no_grad()
def test_groups_are_halved_where_memory_runs_out(monkeypatch, caplog):
    model, z = make(), torch.randn(1, 4, 7, 1, 1, dtype=torch.float64)
    whole, step, sizes = model.decode(z), model.decode_step, []

    def limited(z, *rest):
        sizes.append(z.shape[2])
        if z.shape[2] > 2:
            raise torch.OutOfMemoryError("too much")
        return step(z, *rest)

    monkeypatch.setattr(model, "decode_step", limited)
    assert_close(model.decode(z, chunk_groups=100), whole)
    assert sizes == [7, 4, 2, 1, 1, 1, 1, 1]
    assert "out of memory with chunk_groups=3: trying again with 1" in caplog.text
    monkeypatch.setattr(model, "decode_step", lambda z, *rest: limited(z.repeat(1, 1, 3, 1, 1)))
    with pytest.raises(torch.OutOfMemoryError):
        model.decode(z)
    with torch.enable_grad(), pytest.raises(torch.OutOfMemoryError):
        model.decode(z)


@torch.no_grad()
def test_steps_copy_nothing_between_host_and_device():
    with FakeTensorMode(), torch.device("cuda"):
        model = VideoVAE(VAEConfig(z_dim=4, dim=8))
        x, noise = torch.zeros(2, 3, 9, 64, 64), torch.zeros(2, 4, 3, 8, 8)
        with HostCopies() as copies:
            model(x, noise)
            _, past = model.encode_step(x)
            model.encode_step(x[:, :, 1:], past, True)
            model.decode_step(noise)
            model.decode(noise, chunk_groups=1)
            model.encode(x, chunk_groups=1)
    assert copies.found == []


class HostCopies(TorchDispatchMode):
    """Within, the operations that read or make tensors of two devices, or values for the host."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)}
        if len(devices) > 1 or "_local_scalar_dense" in str(func):
            self.found.append(str(func))
        return result


def test_groups_fill_the_budget_and_no_more(monkeypatch):
    config, x = VAEConfig(), torch.zeros(2, 3, 81, 64, 64, dtype=torch.bfloat16)
    frame = 2 * 64 * 64 * 2
    output = 3 * 81 * frame
    for groups in (1, 7, 20):
        values = LIVE_MAPS * largest_map(config) * (1 + 4 * groups) + 2 * kept_values(config)
        for spare, expected in ((1, groups), (-1, max(groups - 1, 1))):
            free = int(values * frame / memory.MEMORY_FRACTION) + output + 2 * spare
            monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
            assert groups_that_fit(x, (81, 64, 64), config) == expected


def test_the_host_has_what_the_system_and_the_container_leave(monkeypatch, tmp_path):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(measure, "CGROUP", tmp_path)
    device = torch.device("cpu")
    assert measure.free_memory(device) == 1000
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 200\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert measure.free_memory(device) == 1000
    (tmp_path / "memory.max").write_text("1500\n")
    assert measure.free_memory(device) == 800
