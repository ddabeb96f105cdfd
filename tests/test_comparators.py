"""The comparators against their reference vectors, their windows, group causal OD-VAE, training."""

import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from benchmarks import comparators as benchmark
from tests.builders.tiny_comparators import LIKE, LIMIT, distance, smallest, tiny, untrained, video
from tests.builders.vectors import load_case, uniform
from vae.comparators.base import Tiles, Windows
from vae.comparators.blocks import GroupCausalConv3d, PaddedConv3d
from vae.comparators.cv_vae import CVVAE, CVVAEConfig
from vae.comparators.od_vae import ODVAE, ODVAEConfig, to_group_causal
from vae.comparators.opensora_v12 import OpenSoraConfig, OpenSoraVAE, from_official_names
from vae.complexity import count_macs, count_parameters
from vae.registry import COMPARATORS, GCCONV, comparator_config, published_config

OWN = ("cv_vae", "od_vae", "opensora_v12")


@pytest.fixture(scope="module")
def references():
    models = {
        "cvvae": CVVAE(CVVAEConfig(dim=32, windows="single")),
        "odvae": ODVAE(ODVAEConfig(dim=32, windows="single")),
    }
    for name, model in models.items():
        model.load_state_dict(load_case(name).weights())
    config = OpenSoraConfig(
        spatial_dim=32, spatial_multipliers=(1, 2, 2, 2), temporal_dim=32, windows="single"
    )
    models["opensora_v12"] = OpenSoraVAE(config)
    models["opensora_v12"].load_state_dict(from_official_names(load_case("opensora_v12").weights()))
    return models


@torch.no_grad()
def test_vectors_of_cv_vae_and_od_vae(references):
    for name in ("cvvae", "odvae"):
        model, reference = references[name], load_case(name)
        assert sum(p.numel() for p in model.parameters()) == reference.info["parameters"]
        assert len(reference.info["cases"]) == 4
        for case in reference.info["cases"]:
            x = uniform(case["input_seed"], case["input_shape"], case["input_scale"])
            posterior = model.encode(x)
            results = posterior.mean, posterior.logvar, model.decode(posterior.mode())
            for key, result in zip(case["outputs"], results, strict=True):
                assert distance(result, reference.outputs[key]) < LIMIT, (name, key)


@torch.no_grad()
def test_vectors_of_open_sora(references):
    model, reference = references["opensora_v12"], load_case("opensora_v12")
    assert sum(p.numel() for p in model.parameters()) == reference.info["parameters"]
    kinds = []
    for case in reference.info["cases"]:
        x = uniform(case["input_seed"], case["input_shape"], case["input_scale"])
        kinds.append(case["kind"])
        if case["kind"] == "temporal":
            mean, logvar = model.temporal_vae.moments(x).chunk(2, dim=1)
            recon = model.temporal_vae.decode(mean, x.shape[2])
        else:
            posterior = model.encode(x)
            mean, logvar = model.normalize(posterior.mean), posterior.logvar
            recon = model.decode(model.denormalize(mean), size=x.shape[2:])
        for key, result in zip(case["outputs"], (mean, logvar, recon), strict=True):
            assert distance(result, reference.outputs[key]) < LIMIT, key
    assert (kinds.count("temporal"), kinds.count("pipeline")) == (4, 3)


@pytest.mark.parametrize(
    ("name", "parameters", "encoder", "decoder"),
    [
        ("cv_vae", 182.45, 2.84, 8.56),
        ("od_vae", 239.19, 2.61, 11.81),
        ("opensora_v12", 309.69 + 83.65, 3.40, 6.51),
        ("cogvideox", 215.58, 5.01, 10.43),
        ("wan", 126.89, 2.84, 4.78),
    ],
)
def test_cost_is_the_published_one(name, parameters, encoder, decoder):
    kind = COMPARATORS[name]
    config = published_config(name)
    assert count_parameters(kind, config) / 1e6 == pytest.approx(parameters, abs=0.006)
    counts = count_macs(kind, config, 17, 256, 256)
    for macs, published in zip(counts, (encoder, decoder), strict=True):
        assert (macs.convolution + macs.attention) / 1e12 == pytest.approx(published, abs=0.006)


def test_one_command_prints_what_they_cost(capsys):
    size = {"dim": 4, "frames": 5, "height": 16, "width": 16, "repeats": 1}
    benchmark.run(benchmark.Comparison(names=("od_vae", "cv_vae"), **size))
    *_, ours, first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\| IV-VAE \| 16 \| 0\.5 \| .* / .* \| 1\.00 \| 1\.00 \|", ours)
    for title, row in (("OD-VAE", first), ("CV-VAE", second)):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[:2] == [title, "4"]
        assert all(float(cell) > 0 for cell in (cells[2], *cells[3].split("/"), *cells[4:]))
    with pytest.raises(ValueError, match=r"names \['vae'\]: use some of cv_vae"):
        benchmark.Comparison(names=("vae",))


@torch.no_grad()
@pytest.mark.parametrize(("name", "latents"), [("cv_vae", 4), ("od_vae", 15)])
def test_official_windows_share_a_frame(name, latents):
    model, windowed = tiny(name, windows="single"), tiny(name)
    stride = 4 * (latents if name == "cv_vae" else 8)  # OD-VAE's windows differ on the two ways
    x = video(stride + 9)
    first, second = (model.encode(part).mean for part in (x[:, :, : stride + 1], x[:, :, stride:]))
    z = windowed.encode(x).mean
    assert_close(z, torch.cat([first, second[:, :, 1:]], dim=2), rtol=0, atol=0)
    assert distance(z, model.encode(x).mean) > 1e-3  # one window is another result

    z = torch.randn(1, 4, latents + 3, 2, 2, generator=torch.Generator().manual_seed(1))
    first, second = (model.decode(part) for part in (z[:, :, : latents + 1], z[:, :, latents:]))
    joined = torch.cat([first, second[:, :, 1:]], dim=2)
    assert_close(windowed.decode(z), joined, rtol=0, atol=0)
    assert joined.shape[2] == 1 + 4 * (latents + 2)


@torch.no_grad()
def test_open_soras_windows_share_nothing():
    model, windowed = tiny("opensora_v12", windows="single"), tiny("opensora_v12")
    x = video(17 + 6)
    parts = [model.encode(x[:, :, :17]), model.encode(x[:, :, 17:])]
    z = windowed.encode(x).mean
    assert_close(z, torch.cat([part.mean for part in parts], dim=2), rtol=0, atol=0)
    assert z.shape[1:] == windowed.config.latent_shape(23, 16, 24) == (4, 7, 2, 3)
    y = windowed.decode(z, size=x.shape[2:])
    last = model.decode(parts[1].mean, size=(6, 16, 24))
    assert_close(y[:, :, 17:], last, rtol=0, atol=0)
    assert y.shape == x.shape
    assert windowed.decode(z).shape[2] == 17 + 5  # without the size: 1 + 4n of the last window
    assert windowed.config.latent_frames(34) == 10
    assert model.config.latent_frames(34) == 9


def test_windows_cover_every_frame_once():
    for length, overlap in ((17, 1), (5, 1), (17, 0)):
        windows = Windows(length=length, overlap=overlap)
        for total in range(1, 60):
            x = torch.arange(float(total)).view(1, 1, -1, 1, 1)
            assert_close(windows.run(lambda part: part, x), x)
            assert all(
                len(range(total)[span]) > min(overlap, total - 1) for span in windows.spans(total)
            )
    assert [s.start for s in Windows(length=17, overlap=1).spans(33)] == [0, 16]


def test_tiles_fade_linearly_into_each_other():
    x = uniform(3, (1, 2, 1, 30, 20))
    enlarge = partial(F.interpolate, scale_factor=(1, 2, 2))
    assert_close(Tiles(size=24, overlap=8).run(enlarge, x, 2, 1), enlarge(x))
    calls = []

    def count(part: Tensor) -> Tensor:
        calls.append(part.shape[-1])
        return torch.full_like(part, len(calls) - 1.0)

    row = Tiles(size=12, overlap=4).run(count, torch.zeros(1, 1, 1, 4, 20), 1, 1)[0, 0, 0, 0]
    assert calls == [12, 12]
    assert_close(row[8:12], torch.tensor([0.125, 0.375, 0.625, 0.875]))
    assert row[:8].eq(0).all()
    assert row[12:].eq(1).all()


def test_tiles_leave_small_frames_alone():
    x = torch.zeros(1, 3, 1, 576, 64)
    assert CVVAE.tiles.run(lambda part: part, x, 1, 8) is x


@torch.no_grad()
def test_windowed_large_frames_run_in_tiles(monkeypatch):
    monkeypatch.setattr(CVVAE, "tiles", Tiles(size=16, overlap=8))
    model, windowed = tiny("cv_vae", windows="single"), tiny("cv_vae")
    x = video(5, height=16, width=24)
    left, right = model.encode(x[..., :16]).mean, model.encode(x[..., 8:]).mean
    expected = torch.cat(
        [left[..., :1], 0.5 * left[..., 1:] + 0.5 * right[..., :1], right[..., 1:]], dim=-1
    )
    assert_close(windowed.encode(x).mean, expected)


@pytest.mark.parametrize("name", [*COMPARATORS, GCCONV])
def test_training_reaches_every_weight(name):
    torch.manual_seed(0)
    model = tiny(name)  # in eval mode: Allegro has dropout
    frames, height, width = smallest(model)
    x = video(frames, height=height, width=width)
    noise = torch.randn(1, *model.config.latent_shape(frames, height, width))
    reconstruction, posterior = model(x, noise)
    assert reconstruction.shape == x.shape
    with torch.no_grad():
        assert_close(posterior.mean, model.encode(x).mean)
        z = posterior.at(noise)
        assert_close(reconstruction, model.decode(z, size=x.shape[2:]))
    ((reconstruction - x).square().mean() + posterior.kl().mean()).backward()
    unreached = [key for key, p in model.named_parameters() if p.grad is None]
    assert unreached == []
    assert model.last_layer()[0].grad.abs().sum() > 0
    assert model.last_layer()[0].shape[0] % 3 == 0


@pytest.mark.parametrize("name", OWN)
def test_a_few_steps_learn(name):
    torch.manual_seed(0)
    model = untrained(name)
    x = video(5, seed=5) * 0.5 + 0.3
    noise = torch.zeros(1, *model.config.latent_shape(5, 16, 24))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = (model(x, noise)[0] - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", [*COMPARATORS, GCCONV])
def test_exports_come_back(name, tmp_path):
    model = tiny(name)
    model.save_pretrained(tmp_path / "export")
    again = type(model).from_pretrained(tmp_path / "export")
    assert again.config == model.config
    assert not again.training
    for key, value in model.state_dict().items():
        assert_close(again.state_dict()[key], value, rtol=0, atol=0)


def test_normalization_undoes_itself_and_is_the_documented_one():
    z = torch.randn(1, 4, 2, 2, 2)
    for kind, config in ((CVVAE, CVVAEConfig), (ODVAE, ODVAEConfig)):
        model = kind(config(dim=4, norm_groups=4))
        assert_close(model.normalize(z), z * 0.18215)
        assert_close(model.denormalize(model.normalize(z)), z)
    small = OpenSoraConfig(spatial_dim=4, temporal_dim=4, norm_groups=4)
    shift, scale = torch.tensor([-0.10, 0.34, 0.27, 0.98]), torch.tensor([3.85, 2.32, 2.33, 3.06])
    expected = (z - shift.view(-1, 1, 1, 1)) / scale.view(-1, 1, 1, 1)
    assert_close(OpenSoraVAE(small).normalize(z), expected)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("cv_vae", (8, 16, 16), r"8 frames, but the VAE needs 1 \+ 4n. Use 5 or 9"),
        ("od_vae", (5, 20, 16), "height 20, but the VAE needs a multiple of 8. Use 16 or 24"),
        ("opensora_v12", (5, 16, 4), "width 4, but the VAE needs a multiple of 8. Use 8 or 16"),
        ("cogvideox", (5, 16, 16), r"5 frames, but the VAE needs 1 \+ 8n. Use 1 or 9"),
        ("wan", (6, 16, 16), r"6 frames, but the VAE needs 1 \+ 4n. Use 5 or 9"),
        ("wan22", (5, 40, 32), r"height 40, but the VAE needs a multiple of 16. Use 32 or 48"),
        ("ltx2", (5, 32, 32), r"5 frames, but the VAE needs 1 \+ 8n. Use 1 or 9"),
        ("mochi", (5, 16, 16), r"5 frames, but the VAE needs 1 \+ 6n. Use 1 or 7"),
        ("allegro", (5, 16, 16), r"5 frames, but the VAE needs 4 \+ 4n. Use 4 or 8"),
    ],
)
def test_sizes_that_do_not_fit_name_the_nearest(name, size, message):
    model = tiny(name)
    x = torch.zeros(1, 3, *size)
    with pytest.raises(ValueError, match=message):
        model.encode(x)
    with pytest.raises(ValueError, match=message):
        model(x, torch.zeros(1))


def test_bad_values_and_latents_are_refused():
    model = tiny("cv_vae")
    with pytest.raises(ValueError, match=r"Bring 0\.\.255 there"):
        model.encode(torch.full((1, 3, 1, 8, 8), 255.0))
    with pytest.raises(ValueError, match="need b 4 t h w"):
        model.decode(torch.zeros(1, 8, 1, 1, 1))
    with pytest.raises(ValueError, match=r"size=\(9, 8, 8\) .*\(4, 2, 1, 1\)"):
        model.decode(torch.zeros(1, 4, 2, 1, 1), size=(9, 8, 8))
    with pytest.raises(ValueError, match="need finite values"):
        model.decode(torch.full((1, 4, 1, 1, 1), float("nan")))


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (CVVAEConfig, {"dim": 40}, "multiple of norm_groups=32"),
        (ODVAEConfig, {"temporal": "both"}, "temporal='both' must be one of causal, group_causal"),
        (ODVAEConfig, {"channel_multipliers": (1, 2)}, "must be 4 numbers"),
        (
            OpenSoraConfig,
            {"latent_std": (1.0, 0.0, 1.0, 1.0)},
            r"latent_std\[1\]=0\.0 must be above 0",
        ),
        (CVVAEConfig, {"latent_mean": (1.0, 2.0)}, "must have 1 or z_dim=4 values"),
        (CVVAEConfig, {"windows": "all"}, "windows='all' must be one of"),
        (OpenSoraConfig, {"temporal_blocks": 0}, "must be at least 1"),
    ],
)
def test_bad_configs_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def reads(conv: nn.Module, frames: int) -> Tensor:
    """Boolean (out, in): which frames of the input a frame of the output depends on."""
    channels = conv.in_channels
    x = torch.randn(1, channels, frames, 4, 4, requires_grad=True)
    y = conv(x)
    rows = [
        torch.autograd.grad(y[:, :, t].abs().sum(), x, retain_graph=True)[0].abs().sum((0, 1, 3, 4))
        for t in range(y.shape[2])
    ]
    return torch.stack(rows) > 0


@pytest.mark.parametrize(
    ("group", "options"),
    [
        (1, {}),
        (2, {}),
        (4, {}),
        (2, {"stride": (2, 2, 2), "margin": 0}),
        (4, {"stride": (2, 2, 2), "margin": 0}),
    ],
)
def test_group_causal_convolution_pads_every_group_by_the_frame_before_and_zeros(group, options):
    torch.manual_seed(group)
    conv = GroupCausalConv3d(3, 5, group=group, **options)
    for frames in (1, 1 + group, 1 + 3 * group):
        x = torch.randn(2, 3, frames, 5, 7, requires_grad=True)
        groups = [(x[:, :, :1], x[:, :, :1])]  # the frame before, and the group
        groups += [(x[:, :, i - 1 : i], x[:, :, i : i + group]) for i in range(1, frames, group)]
        padded = [F.pad(torch.cat(parts, dim=2), (0, 0, 0, 0, 0, 1)) for parts in groups]
        margin = (0, conv.margin, conv.margin)
        parts = [F.conv3d(p, conv.weight, conv.bias, conv.stride, margin) for p in padded]
        given = [x, *conv.parameters()]
        results = [(y, *torch.autograd.grad(y.square().sum(), given))
                   for y in (conv(x), torch.cat(parts, dim=2))]  # fmt: skip
        for ours, expected in zip(*results, strict=True):
            assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_replacement_changes_what_every_temporal_convolution_of_od_vae_reads():
    before = tiny("od_vae")
    after = to_group_causal(before)
    assert after.state_dict().keys() == before.state_dict().keys()
    for key, value in before.state_dict().items():
        assert_close(after.state_dict()[key], value, rtol=0, atol=0)
    replaced = dict(after.named_modules())
    seen = set()
    for name, old in before.named_modules():
        if not isinstance(old, PaddedConv3d):
            continue
        new = replaced[name]
        if old.kernel_size[0] == 1:
            assert type(new) is PaddedConv3d, name
            continue
        assert isinstance(new, GroupCausalConv3d), name
        assert new.stride == old.stride
        seen.add((new.group, new.stride[0]))
        if (new.group, new.stride[0]) in {(1, 1), (2, 1), (4, 1)}:
            frame, other = torch.arange(9)[:, None], torch.arange(9)
            last = -(-frame // new.group) * new.group  # of the frame's group
            assert torch.equal(reads(old, 9), (frame - 2 <= other) & (other <= frame)), name
            allowed = (frame - 1 <= other) & (other <= frame + 1) & (other <= last)
            assert torch.equal(reads(new, 9), allowed), name
    assert seen == {(1, 1), (2, 1), (4, 1), (4, 2), (2, 2)}


@torch.no_grad()
def test_groups_have_the_frames_of_the_rate_at_which_a_convolution_runs():
    after = to_group_causal(tiny("od_vae"))
    frames = {}
    for name, module in after.named_modules():
        if isinstance(module, GroupCausalConv3d):
            module.register_forward_hook(
                lambda module, inputs, y, name=name: frames.update({name: inputs[0].shape[2]})
            )
    after.reconstruct(video(17))
    groups = {
        name: module.group
        for name, module in after.named_modules()
        if isinstance(module, GroupCausalConv3d)
    }
    assert frames == {name: 1 + 4 * group for name, group in groups.items()}


@torch.no_grad()
def test_replacement_merges_pairs_as_before():
    before = tiny("od_vae")
    after = to_group_causal(before)
    x = torch.randn(1, 16, 9, 8, 8)
    old = before.get_submodule("encoder.down.1.downsample")(x)
    new = after.get_submodule("encoder.down.1.downsample")(x)
    assert_close(new[:, :, 1:], old[:, :, 1:])
    assert distance(new[:, :, :1], old[:, :, :1]) > 0.01


def test_frames_of_a_group_meet_and_later_groups_stay_unseen(monkeypatch):
    """Without norms, which join all frames of a window, in OD-VAE as published and after."""
    monkeypatch.setattr(nn.GroupNorm, "forward", lambda self, x: x)
    before = tiny("od_vae")
    after = to_group_causal(before)
    grads = {}
    for name, model in (("before", before), ("after", after)):
        x = video(9).requires_grad_()
        encoder = model.encoder
        half = encoder.get_submodule("down.2.block")(encoder.down[:2](encoder.conv_in(x)))
        latent = model.moments(x)
        for key, y in (("half", half), ("latent", latent)):
            grads[name, key] = torch.stack(
                [
                    torch.autograd.grad(y[:, :, t].abs().sum(), x, retain_graph=True)[0]
                    .abs()
                    .sum((0, 1, 3, 4))
                    for t in range(y.shape[2])
                ]
            )
    # the first of the two half-rate frames of group (1, 2, 3, 4): does it see frames 3 and 4?
    assert not grads["before", "half"][1, 3:].any()
    assert grads["after", "half"][1, 3:5].all()
    assert not grads["after", "half"][1:3, 5:].any()
    for name in ("before", "after"):
        latent = grads[name, "latent"]
        assert latent[1, :5].all()
        assert not latent[0, 1:].any()
        assert not latent[1, 5:].any()


@torch.no_grad()
def test_replacement_says_what_changes(caplog):
    model = tiny("od_vae")
    with caplog.at_level("INFO"):
        after = to_group_causal(model)
    assert "causal convolutions are group causal now" in caplog.text
    assert not after.training
    x = video(9)
    assert distance(after.reconstruct(x), model.reconstruct(x)) > 0.05
    assert comparator_config(GCCONV, LIKE) == after.config
