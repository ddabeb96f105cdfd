"""V-JEPA with its pooler: the output of torch's own layers, checkpoints, JEDi's name."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from eval.features.extractors import load_fvd_extractor
from eval.features.video_transformer import TransformerShape
from eval.features.vjepa import VJEPA, load_vjepa

TINY = TransformerShape(dim=192, depth=2, hidden=256, patch=56, tubelet=4)


@pytest.fixture(scope="module")
def network():
    """With weights far from their usual start, so that every one matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = VJEPA(TINY)
        for name, value in network.named_parameters():
            nn.init.normal_(value, mean=float("norm" in name), std=0.2)
    return network.requires_grad_(False)


@pytest.fixture
def files(network, tmp_path):
    """Checkpoints as their authors save them."""
    state = network.state_dict()
    encoder = {f"module.backbone.{k}": v for k, v in state.items() if not k.startswith("pooler")}
    probe = {f"module.{k}": v for k, v in state.items() if k.startswith("pooler")}
    probe |= {"module.linear.weight": torch.zeros(174, 192), "module.linear.bias": torch.zeros(174)}
    other = {key: torch.zeros_like(v) for key, v in encoder.items()}
    paths = tmp_path / "vith16.pth.tar", tmp_path / "ssv2-probe.pth.tar"
    torch.save({"encoder": other, "target_encoder": encoder, "epoch": 300}, paths[0])
    torch.save({"classifier": probe, "epoch": 20}, paths[1])
    return paths


def by_torch(network: VJEPA, video: torch.Tensor) -> torch.Tensor:
    """The same from torch's own transformer layers."""
    state = network.state_dict()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((video + 1) / 2 - mean[:, None, None, None]) / std[:, None, None, None]
    weight, bias = (state[f"patch_embed.proj.{name}"] for name in ("weight", "bias"))
    x = nn.functional.conv3d(pixels, weight, bias, stride=(4, 56, 56)).flatten(2).transpose(1, 2)
    x = x + state["pos_embed"]
    for i in range(TINY.depth):
        layer = nn.TransformerEncoderLayer(
            *(192, 3, 256), dropout=0, activation="gelu", batch_first=True, norm_first=True
        )
        for norm in (layer.norm1, layer.norm2):
            norm.eps = 1e-6
        names = {"self_attn.in_proj_weight": "attn.qkv.weight"}
        names |= {"self_attn.in_proj_bias": "attn.qkv.bias"}
        for theirs, ours in {"self_attn.out_proj": "attn.proj", "linear1": "mlp.fc1"}.items():
            names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
        for theirs, ours in {"linear2": "mlp.fc2", "norm1": "norm1", "norm2": "norm2"}.items():
            names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
        layer.load_state_dict({theirs: state[f"blocks.{i}.{o}"] for theirs, o in names.items()})
        x = layer.eval()(x)
    x = nn.functional.layer_norm(x, (192,), state["norm.weight"], state["norm.bias"], 1e-6)

    block = {k.split("block.")[1]: v for k, v in state.items() if "cross_attention_block" in k}

    def normed(y, name):
        return nn.functional.layer_norm(y, (192,), block[f"{name}.weight"], block[f"{name}.bias"])

    attention = nn.MultiheadAttention(192, 3, batch_first=True)
    attention.load_state_dict(
        {
            "in_proj_weight": torch.cat([block["xattn.q.weight"], block["xattn.kv.weight"]]),
            "in_proj_bias": torch.cat([block["xattn.q.bias"], block["xattn.kv.bias"]]),
            "out_proj.weight": block["xattn.proj.weight"],
            "out_proj.bias": block["xattn.proj.bias"],
        }
    )
    query = state["pooler.query_tokens"].expand(len(x), 1, 192)
    x = normed(x, "norm1")
    query = query + attention.eval()(query, x, x, need_weights=False)[0]
    inner = nn.functional.linear(
        normed(query, "norm2"), block["mlp.fc1.weight"], block["mlp.fc1.bias"]
    )
    outer = nn.functional.linear(
        nn.functional.gelu(inner), block["mlp.fc2.weight"], block["mlp.fc2.bias"]
    )
    return (query + outer)[:, 0]


def test_the_output_is_that_of_torchs_own_layers(network, files):
    video = torch.rand(2, 3, 16, 224, 224, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        expected = by_torch(network, video)
        assert_close(load_vjepa(*files)(video), expected, rtol=1e-4, atol=1e-4)
    extractor = load_fvd_extractor("vjepa", files[0])
    assert (extractor.score, extractor.distance, extractor.dimensions) == ("jedi", "jedi", 192)
    assert_close(extractor.features(video), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="15 frames, but vjepa needs 16"):
        extractor.features(video[:, :, :15])
    with pytest.raises(ValueError, match="V-JEPA needs b 3 16 224 224"):
        network(video[..., :208])


def test_the_huge_model():
    shape = TransformerShape(dim=1280, depth=32, hidden=5120, patch=16, tubelet=2)
    with torch.device("meta"):
        model = VJEPA(shape)
    assert model.pos_embed.shape == (1, 1568, 1280)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    pooler = sum(n for name, n in sizes.items() if name.startswith("pooler"))
    block = 12 * 1280**2 + 13 * 1280  # attention, MLP, biases and two norms
    assert pooler == block + 1280
    assert sum(sizes.values()) - pooler == 32 * block + 1280 * (3 * 2 * 16**2 + 1 + 2 + 1568)


def test_other_files_are_refused(files, tmp_path):
    encoder, probe = files
    with pytest.raises(ValueError, match=r"ssv2-probe.pth.tar: .*V-JEPA"):
        load_vjepa(probe, encoder)
    with pytest.raises(ValueError, match=r"pooler\.query_tokens"):
        load_vjepa(encoder, encoder)
    probe.unlink()
    with pytest.raises(ValueError, match=r"V-JEPA.*no vjepa/ssv2-probe.pth.tar"):
        load_fvd_extractor("vjepa", encoder)
