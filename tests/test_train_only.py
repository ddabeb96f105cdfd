"""Training a part of a VAE: the rest keeps its bits, and latents stay valid as long as they do."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from common.cli import parse
from common.files import read_json
from data.clips.dataset import PackedClips
from data.latents.dataset import LatentDataset
from engine.ema import EMA
from engine.optimization import trainable
from engine.run_folder import read_log
from latte.samplers import SamplerConfig
from scripts import cache_latents, train_latte, train_vae
from scripts import sample as sampling
from scripts.train_vae import TrainVAE
from tests.builders.packed import pack
from tests.builders.processes import run_ranks
from tests.builders.tiny_comparators import LIKE, smallest, tiny
from tests.builders.tiny_vae import scramble
from tests.builders.training_runs import MODEL, gan_run, latte_run, video_run, weights
from vae import VideoVAE
from vae.parts import decoder_hash, encoder_hash, freeze_others, trains, vae_hash
from vae.registry import OTHERS
from vae.regularizers import LatentMasking, LocalCorrelation, RegularizerConfig


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Shards and a VAE to start from, with a negative zero: an average of two of those is +0."""
    folder = tmp_path_factory.mktemp("data")
    pack(folder, [12, 14, 16, 18])
    torch.manual_seed(0)
    vae = VideoVAE(MODEL)
    for parameter in vae.parameters():
        parameter.data.flatten()[0] = -0.0
    vae.save_pretrained(folder / "vae")
    return folder


def run_of(root, folder, *parts, steps=3, gan=False, **changes):
    make = gan_run if gan else video_run
    options = {"start": 0, "discriminator_rate": 1e-4} if gan else {}
    config = make(folder, root / "shards", steps, weight_decay=0.1, ema_decay=0.5, **options)
    changes = {"init_from": str(root / "vae"), "train_only": list(parts), **changes}
    return replace(config, **changes)


def bits(tensors):
    return {name: value.numpy().tobytes() for name, value in tensors.items()}


def moved(before, after):
    """First parts of the names of weights of which any bit differs."""
    old, new = bits(before), bits(after)
    return {name.split(".")[0] for name in old if new[name] != old[name]}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["decoder"], {"decoder", "from_latent"}),
        (["encoder"], {"encoder", "to_moments"}),
        (["to_moments", "decoder.head"], {"to_moments", "decoder"}),
    ],
)
def test_all_but_the_parts_keep_their_bits_in_weights_and_average(root, tmp_path, parts, expected):
    train_vae.run(run_of(root, tmp_path, *parts))
    start = load_file(root / "vae" / "model.safetensors")
    (checkpoint,) = tmp_path.glob("checkpoints/step-00000003")
    for file in ("model.safetensors", "ema/model.safetensors"):
        after = load_file(checkpoint / file)
        assert moved(start, after) == expected
        if "decoder.head" in parts:
            others = {name: after[name] for name in after if not name.startswith("decoder.head.")}
            assert "decoder" not in moved(others, start)


def test_the_average_of_frozen_weights_keeps_the_sign_of_zero():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(-0.0)
    model.weight.requires_grad_(False)
    ema = EMA(model, decay=0.9)
    ema.update(model, step=1000)
    assert bits({"": ema.model.weight}) == bits({"": model.weight})


def test_a_gan_with_a_frozen_encoder_resumes_bit_for_bit(root, tmp_path):
    terms = RegularizerConfig(masking=LatentMasking(ratios=(0.5,), probabilities=(1.0,)))
    options = {"gan": True, "regularizers": terms}
    train_vae.run(run_of(root, tmp_path / "straight", "decoder", **options))
    train_vae.run(run_of(root, tmp_path / "resumed", "decoder", steps=2, **options))
    train_vae.run(run_of(root, tmp_path / "resumed", "decoder", **options))
    one, two = weights(tmp_path / "straight"), weights(tmp_path / "resumed")
    assert bits(one) == bits(two)
    assert one.pop("mask_token").any()  # the decoder learns what stands for hidden latents
    assert moved(load_file(root / "vae" / "model.safetensors"), one) == {"decoder", "from_latent"}
    log = read_log(tmp_path / "straight")
    assert log[-1]["gan_weight"] > 0
    for name in ("loss", "gan", "grad_norm"):
        assert [x.get(name) for x in log] == [x.get(name) for x in read_log(tmp_path / "resumed")]


def test_two_processes_learn_what_one_does_with_ddp_and_fsdp(root, tmp_path, monkeypatch):
    one, ddp, fsdp = (
        run_of(root, tmp_path / n, "decoder", gan=True) for n in ("one", "ddp", "fsdp")
    )
    monkeypatch.setenv("FSDP_VERSION", "2")
    for kind, config in (("false", ddp), ("true", fsdp)):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", kind)
        run_ranks(2, train_vae.run, config)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    train_vae.run(one)
    start = load_file(root / "vae" / "model.safetensors")
    for folder in (tmp_path / "ddp", tmp_path / "fsdp"):
        assert moved(start, weights(folder)) == {"decoder", "from_latent"}
        for x, y in zip(read_log(tmp_path / "one"), read_log(folder), strict=True):
            assert_close(x["mae"], y["mae"], rtol=1e-3, atol=0)
        assert_close(weights(folder), weights(tmp_path / "one"), rtol=0, atol=3e-3)


@pytest.mark.parametrize("name", OTHERS)
def test_every_comparator_trains_its_decoder_alone(name):
    model = tiny(name)
    size = smallest(model)
    x = torch.rand(1, 3, *size) * 2 - 1
    latent, encoder, decoder = model.moments(x), encoder_hash(model), decoder_hash(model)
    freeze_others(model.train(), ["decoder"], size)
    assert not trains(model, "encoder")
    optimizer = torch.optim.AdamW(trainable(model), weight_decay=0.1)
    model(x, torch.randn(1, *model.config.latent_shape(*size)))[0].mean().backward()
    optimizer.step()
    assert encoder_hash(model) == encoder
    assert_close(model.moments(x), latent, rtol=1e-4, atol=1e-5)
    assert decoder_hash(model) != decoder
    encoding = [name for name in dict(model.named_parameters()) if "encoder" in name.split(".")]
    model.get_parameter(encoding[0]).data += 1
    assert encoder_hash(model) != encoder


def test_a_comparator_is_trained_in_part_by_the_command(root, tmp_path):
    start = tiny("wan")
    start.save_pretrained(tmp_path / "wan")
    part = ("vae.post_quant_conv",)
    values = {"architecture": "wan", "model": LIKE, "init_from": str(tmp_path / "wan")}
    train_vae.run(run_of(root, tmp_path / "run", *part, steps=1, **values))
    before, after = bits(start.state_dict()), bits(weights(tmp_path / "run"))
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"vae.post_quant_conv.weight", "vae.post_quant_conv.bias"}


def test_a_frozen_encoder_has_no_dropout():
    config = replace(MODEL, dropout=0.5)
    x = torch.rand(1, 3, 5, 16, 16)
    for parts in (["decoder"], ["encoder"]):
        model = scramble(VideoVAE(config)).train()
        freeze_others(model, parts, (5, 16, 16))
        rates = {m.p for m in model.encoder.modules() if isinstance(m, nn.Dropout)}
        assert rates == {0.0 if parts == ["decoder"] else 0.5}
        assert {m.p for m in model.decoder.modules() if isinstance(m, nn.Dropout)} == {0.5}
        same = torch.equal(model.moments(x), model.eval().moments(x))
        assert same == (parts == ["decoder"])


def test_a_dry_run_says_how_much_is_trained(root, tmp_path, capsys):
    config = run_of(root, tmp_path / "run", "decoder.head", dry_run=True)
    train_vae.run(config)
    model = VideoVAE(MODEL)
    trained, whole = (sum(p.numel() for p in m.parameters()) for m in (model.decoder.head, model))
    line = f"model: {whole / 1e6:.2f} M parameters, {trained / 1e6:.2f} M of them trained"
    assert line in capsys.readouterr().out


@pytest.fixture(scope="module")
def chain(root):
    """A VAE, its latents, Latte on them; then its decoder and its encoder trained further."""
    for part in ("decoder", "encoder"):
        train_vae.run(run_of(root, root / part, part, steps=1))
    data = PackedClips(folder=str(root / "shards"), frames=5, height=16, width=16)
    options = {"data": data, "out": str(root / "latents"), "workers": 0}
    cache = cache_latents.CacheLatents(vae=str(root / "vae"), **options)
    cache_latents.run(cache)
    train_latte.run(latte_run(root / "latte", root / "latents", steps=1))
    sampler = SamplerConfig(method="ddim", steps=2)
    clips = sampling.Sample(
        latte=str(root / "latte" / "export"),
        vae=str(root / "vae"),
        out=str(root / "samples"),
        num_clips=1,
        sampler=sampler,
    )
    sampling.run(clips)
    vaes = SimpleNamespace(
        **{n: str(root / n / "export") for n in ("decoder", "encoder")}, start=str(root / "vae")
    )
    return SimpleNamespace(root=root, vaes=vaes, cache=cache, clips=clips)


def test_another_decoder_is_accepted_by_cache_training_and_sampling(chain, tmp_path, capsys):
    one, other = (VideoVAE.from_pretrained(v) for v in (chain.vaes.start, chain.vaes.decoder))
    assert encoder_hash(one) == encoder_hash(other)
    assert vae_hash(one) != vae_hash(other)
    capsys.readouterr()
    cache_latents.run(replace(chain.cache, vae=chain.vaes.decoder))
    assert "is complete: nothing to do" in capsys.readouterr().out
    assert LatentDataset(chain.cache.out).encoder_hash == encoder_hash(other)
    latte = latte_run(tmp_path / "latte", chain.cache.out, steps=1)
    train_latte.run(replace(latte, vae=chain.vaes.decoder))
    sampling.run(replace(chain.clips, vae=chain.vaes.decoder, out=str(tmp_path / "samples")))
    before, after = (
        read_json(f"{folder}/samples.json")["vae"]
        for folder in (chain.clips.out, tmp_path / "samples")
    )
    assert before["encoder_sha256"] == after["encoder_sha256"] == encoder_hash(one)
    assert before["decoder_sha256"] == decoder_hash(one)
    assert after["decoder_sha256"] == decoder_hash(other)


def test_clips_of_two_decoders_are_not_mixed_in_a_folder(chain):
    with pytest.raises(ValueError, match=r"vae was .* now .*decoder/export"):
        sampling.run(replace(chain.clips, vae=chain.vaes.decoder, num_clips=2))


def test_another_encoder_is_refused_by_cache_training_and_sampling(chain, tmp_path):
    vae = chain.vaes.encoder
    with pytest.raises(ValueError, match=r"encoder_sha256 was '\w+\.\.\.\w+', now '"):
        cache_latents.run(replace(chain.cache, vae=vae))
    latte = latte_run(tmp_path / "latte", chain.cache.out, steps=1)
    with pytest.raises(ValueError, match="these latents come from the encoder"):
        train_latte.run(replace(latte, vae=vae))
    with pytest.raises(ValueError, match="not the encoder of"):
        sampling.run(replace(chain.clips, vae=vae, out=str(tmp_path / "samples")))


def test_what_the_config_says_of_latents_is_part_of_the_encoder():
    torch.manual_seed(0)
    one = VideoVAE(MODEL)
    other = VideoVAE(replace(MODEL, dropout=0.1))
    other.load_state_dict(one.state_dict())
    assert encoder_hash(other) == encoder_hash(one)
    for changes in ({"latent_std": (2.0,)}, {"temporal": "causal"}):
        other = VideoVAE(replace(MODEL, **changes))
        other.load_state_dict(one.state_dict())
        assert encoder_hash(other) != encoder_hash(one)


@pytest.mark.parametrize(
    ("parts", "changes", "message"),
    [
        (["head"], {}, "train_only=head: no such part. Use encoder, decoder, to_moments, from_lat"),
        (
            ["decoder", "decoder.middle.0.dropout"],
            {},
            "decoder.middle.0.dropout: has no parameters",
        ),
        (["decoder"], {"init_from": None}, "train_only=decoder: the other parts would stay random"),
        (
            ["decoder"],
            {"regularizers": RegularizerConfig(local_correlation=LocalCorrelation())},
            "local_correlation moves the encoder alone",
        ),
        (["encoder"], {"gan": True}, "adversarial.weighting=adaptive .* train decoder.head too"),
    ],
)
def test_parts_that_cannot_be_trained_are_refused(root, tmp_path, parts, changes, message):
    with pytest.raises(ValueError, match=message):
        train_vae.run(run_of(root, tmp_path / "run", *parts, **changes))
    assert not (tmp_path / "run").exists()


def test_a_part_that_no_loss_reaches_is_refused():
    """On images alone Wan's decoder never joins frames."""
    model = tiny("wan")
    joins = next(n for n, _ in model.named_modules() if n.endswith("time_conv") and "decoder" in n)
    freeze_others(model, [joins], (5, 16, 16))
    with pytest.raises(ValueError, match=rf"train_only={joins}: .* 1 x 16 x 16"):
        freeze_others(model, [joins], (1, 16, 16))


def test_the_command_line_names_several_parts(root):
    flags = ["--train_only", "decoder", "--train_only=to_moments", "--init_from=x"]
    flags += ["--train.folder=run", "--train.steps=1", "--train.global_batch_size=1"]
    flags += [f"--data.folder={root / 'shards'}", "--data.frames=5", "--loss.perceptual=none"]
    assert parse(TrainVAE, flags).train_only == ["decoder", "to_moments"]
