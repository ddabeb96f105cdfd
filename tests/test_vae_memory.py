"""How many groups run at once: the estimate of memory, the budget, `chunk_groups`."""

from types import SimpleNamespace

import psutil
import pytest
import torch

from common.measure import LiveMemory
from tests.test_vae import TINY, make, video
from tests.test_vae_streaming import LONG
from vae import VAEConfig, VideoVAE, memory
from vae.memory import LIVE_MAPS, groups_that_fit, kept_values, largest_map


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
    with pytest.raises(ValueError, match=f"chunk_groups={chunk_groups} must be at least 1"):
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
def test_the_estimate_of_memory_bounds_what_is_used(config):
    model = VideoVAE(config)
    side = 8 * config.spatial_ratio
    for groups in (1, 4):
        frames = 1 + groups * config.temporal_ratio
        estimate = LIVE_MAPS * largest_map(config) * frames + kept_values(config)
        estimate *= side * side * 4
        for step, x in (
            (model.encode_step, torch.zeros(1, 3, frames, side, side)),
            (model.decode_step, torch.zeros(1, config.z_dim, 1 + groups, 8, 8)),
        ):
            with LiveMemory() as live, torch.no_grad():
                step(x)
            assert estimate / 4 < live.peak < estimate


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
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    device = torch.device("cpu")
    assert memory.free_memory(device) == 1000
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 200\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(device) == 1000
    (tmp_path / "memory.max").write_text("1500\n")
    assert memory.free_memory(device) == 800
