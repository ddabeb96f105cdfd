"""Latte: reference outputs, sizes of the paper, what mixes with what, saving."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from common.seeding import generator
from latte import Latte, LatteConfig
from latte.blocks import attend
from latte.config import PRESETS
from latte.embeddings import drop_labels, spatial_positions, temporal_positions
from tests.builders.tiny_latte import TINY, awake, inputs
from tests.builders.vectors import load_case, normal


@pytest.mark.parametrize("name", ["latte_uncond", "latte_class", "latte_image_joint"])
def test_reference_outputs(name):
    case = load_case(name)
    info, reference = case.info, case.info["config"]
    config = LatteConfig(
        in_channels=reference["in_channels"],
        num_frames=reference["num_frames"],
        height=reference["input_size"],
        width=reference["input_size"],
        patch_size=reference["patch_size"],
        hidden_size=reference["hidden_size"],
        depth=reference["depth"],
        num_heads=reference["num_heads"],
        num_classes=reference["num_classes"] if info["class_conditional"] else None,
    )
    model = Latte(config)
    weights = case.weights()
    del weights["pos_embed"], weights["temp_embed"]
    model.load_state_dict(weights)
    assert_close(model.pos_embed, case.outputs["pos_embed"][0], rtol=0, atol=1e-7)
    assert_close(model.temp_embed[:, 0], case.outputs["temp_embed"][0], rtol=0, atol=1e-7)
    y = None if info["y"] is None else torch.tensor(info["y"])
    x = normal(info["input_seed"], info["input_shape"]).transpose(1, 2)
    output = model(x, torch.tensor(info["t"]), y, info["num_images"])
    assert_close(output, case.outputs["output"].transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "unconditional", "conditional"),
    [
        ("S", 32_480_672, 32_519_840),
        ("B", 129_547_040, 129_625_376),
        ("L", 456_815_648, 456_920_096),
        ("XL", 673_681_568, 673_799_072),
    ],
)
def test_parameter_counts_of_the_paper(size, unconditional, conditional):
    for classes, count in ((None, unconditional), (101, conditional)):
        config = LatteConfig.preset(
            size, in_channels=4, num_frames=16, height=32, width=32, num_classes=classes
        )
        with torch.device("meta"):
            model = Latte(config)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


def test_default_config_is_xl():
    default = LatteConfig(in_channels=4, num_frames=16, height=32, width=32)
    assert default == LatteConfig.preset("XL", in_channels=4, num_frames=16, height=32, width=32)
    assert set(PRESETS) == {"S", "B", "L", "XL"}


@pytest.mark.parametrize("variant", [1, 2, 3, 4])
@pytest.mark.parametrize("learn_sigma", [True, False])
def test_a_new_model_predicts_exactly_zero(variant, learn_sigma):
    model = Latte(replace(TINY, variant=variant, learn_sigma=learn_sigma))
    x, t, y = inputs(TINY)
    output = model(x, t, y)
    assert output.shape == (2, 6 if learn_sigma else 3, 3, 4, 6)
    assert output.count_nonzero() == 0


def test_initial_weights():
    torch.manual_seed(0)
    model = Latte(replace(TINY, hidden_size=256, depth=2, num_heads=4, num_classes=400))
    assert_close(model.y_embedder.embedding_table.weight.std().item(), 0.02, rtol=0.02, atol=0)
    for layer in (model.t_embedder.mlp[0], model.t_embedder.mlp[2]):
        assert_close(layer.weight.std().item(), 0.02, rtol=0.02, atol=0)
    # Xavier: uniform in +-sqrt(6 / (inputs + outputs)); the patch convolution has 3 * 2 * 2 inputs.
    for weight, fans in (
        (model.x_embedder.proj.weight, 12 + 256),
        (model.blocks[0].attn.qkv.weight, 256 + 768),
        (model.blocks[1].mlp.fc1.weight, 256 + 1024),
    ):
        assert_close(weight.abs().max().item(), (6 / fans) ** 0.5, rtol=0.02, atol=0)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "adaLN" in name or name == "final_layer.linear.weight":
            assert parameter.count_nonzero() == 0, name
        else:
            assert parameter.std() > 0, name


def test_position_tables():
    """Half column, half row; each sines, then cosines, of frequencies 1 and 1/100."""
    row, column = 1.0, 2.0
    angles = torch.tensor([[column, column / 100], [row, row / 100]])
    expected = torch.cat([angles.sin(), angles.cos()], dim=1).flatten()
    assert_close(spatial_positions(2, 3, 8)[3 + 2], expected, rtol=0, atol=1e-7)
    angle = torch.tensor([3.0])
    expected = torch.cat([angle.sin(), angle.cos()])
    assert_close(temporal_positions(4, 2)[3], expected, rtol=0, atol=1e-7)
    assert torch.equal(temporal_positions(9, 8)[:4], temporal_positions(4, 8))


def test_a_rectangular_frame_is_put_back_in_place():
    """With blocks as identities, a patch of the output sees its own patch of the input only."""
    model = awake(TINY)
    for block in model.blocks:
        torch.nn.init.zeros_(block.adaLN_modulation[1].weight)
        torch.nn.init.zeros_(block.adaLN_modulation[1].bias)
    x, t, y = inputs(TINY)
    x.requires_grad_()
    model(x, t, y)[0, :, 1, 2:4, 4:6].sum().backward()
    touched = x.grad.abs().sum(dim=1) > 0  # b t h w
    expected = torch.zeros_like(touched)
    expected[0, 1, 2:4, 4:6] = True
    assert torch.equal(touched, expected)


@pytest.mark.parametrize("variant", [1, 2, 3, 4])
def test_every_frame_sees_every_frame(variant):
    config = replace(TINY, variant=variant)
    model = awake(config)
    x, t, y = inputs(config)
    moved = x.clone()
    moved[0, :, 2, 0, 0] += 1
    change = (model(moved, t, y) - model(x, t, y)).abs().amax(dim=(1, 3, 4))  # b t
    assert (change[0] > 1e-4).all()
    assert change[1].max() == 0


def test_variants_order_the_blocks():
    assert TINY.axes == ("space", "time", "space", "time")
    assert replace(TINY, variant=2).axes == ("space", "space", "time", "time")
    assert replace(TINY, variant=3, depth=3).axes == ("both",) * 3
    assert replace(TINY, variant=4, depth=1).axes == ("split",)


def test_parameters_of_the_variants():
    """3 has a second attention in each block; 4 shares one out."""
    one, two, three, four = (
        sum(p.numel() for p in Latte(replace(TINY, variant=variant)).parameters())
        for variant in (1, 2, 3, 4)
    )
    d = TINY.hidden_size
    assert one == two == four
    assert three == one + TINY.depth * (4 * d * d + 4 * d)


def softmax_attention(qkv, heads):
    """Attention over the last but one axis, written out."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(-2, -3) for part in qkv.chunk(3, -1))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights @ v).transpose(-2, -3).flatten(-2)


def test_variant_3_attends_in_space_then_in_time():
    attention = awake(replace(TINY, variant=3)).blocks[0].attn
    x = normal(4, (2, 4, 6, 16))  # 3 frames and an image
    y = attention.space.proj(softmax_attention(attention.space.qkv(x), 2))
    clip = y[:, :3].transpose(1, 2)
    clip = attention.time.proj(softmax_attention(attention.time.qkv(clip), 2)).transpose(1, 2)
    assert_close(attention(x), torch.cat([clip, y[:, 3:]], dim=1), rtol=1e-4, atol=1e-5)


def test_variant_4_shares_the_heads_between_space_and_time():
    attention = awake(replace(TINY, variant=4)).blocks[0].attn
    x = normal(4, (2, 4, 6, 16))
    parts = attention.qkv(x).chunk(3, dim=-1)
    space, time = (torch.cat([p.chunk(2, -1)[half] for p in parts], -1) for half in (0, 1))
    clip = softmax_attention(time[:, :3].transpose(1, 2), 1).transpose(1, 2)
    time = torch.cat([clip, time[:, 3:, :, -8:]], dim=1)  # an image alone in time sees itself
    expected = attention.proj(torch.cat([softmax_attention(space, 1), time], dim=-1))
    assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_patch_sizes(patch):
    config = replace(TINY, patch_size=patch, height=8, width=16)
    model = awake(config)
    x, t, y = inputs(config)
    assert model.pos_embed.shape == (128 // patch**2, 16)
    assert model(x, t, y).shape == (2, 6, 3, 8, 16)


@pytest.mark.parametrize("variant", [1, 2, 3, 4])
def test_images_mix_neither_with_each_other_nor_with_the_clip(variant):
    model = awake(replace(TINY, variant=variant))
    x, t, y = inputs(TINY, images=2)
    output = model(x, t, y, 2)
    for changed in (2, 3):  # the clip's last frame, the first image
        moved = x.clone()
        moved[:, :, changed] += 1
        change = (model(moved, t, y, 2) - output).abs().amax(dim=(0, 1, 3, 4))  # t
        affected = {0, 1, 2} if changed < 3 else {changed}
        for frame in range(5):
            assert (change[frame] > 1e-4) == (frame in affected), (changed, frame)
    assert_close(output[:, :, :3], model(x[:, :, :3], t, y), rtol=1e-5, atol=1e-5)


def test_each_image_has_its_own_label():
    model = awake(TINY)
    x, t, y = inputs(TINY, images=2)
    labels = torch.stack([y, y, y], dim=1)
    output = model(x, t, labels, 2)
    assert_close(output, model(x, t, y, 2), rtol=1e-5, atol=1e-5)
    labels[:, 2] = 4
    change = (model(x, t, labels, 2) - output).abs().amax(dim=(0, 1, 3, 4))  # t
    assert (change > 1e-4).tolist() == [False, False, False, False, True]


def test_the_null_label_is_a_class_of_its_own_and_otherwise_nothing():
    model = awake(TINY)
    unconditional = Latte(replace(TINY, num_classes=None)).eval()
    state = model.state_dict()
    del state["y_embedder.embedding_table.weight"]
    unconditional.load_state_dict(state)
    x, t, y = inputs(TINY)
    null = torch.full_like(y, TINY.null_label)
    assert not torch.allclose(model(x, t, null), model(x, t, y), atol=1e-3)
    with torch.no_grad():
        model.y_embedder.embedding_table.weight[TINY.null_label] = 0
    assert_close(model(x, t, null), unconditional(x, t), rtol=0, atol=0)


def test_labels_are_dropped_by_row_at_the_configured_rate():
    config = replace(TINY, class_dropout=0.3)
    y = (torch.arange(4000) % 5)[:, None].expand(-1, 3).contiguous()
    dropped = drop_labels(y, config, generator(1))
    null = dropped == config.null_label
    assert torch.equal(null.all(dim=1), null.any(dim=1))
    assert abs(null.float().mean().item() - 0.3) < 0.03
    assert torch.equal(dropped[~null], y[~null])
    assert torch.equal(dropped, drop_labels(y, config, generator(1)))
    assert not torch.equal(dropped, drop_labels(y, config, generator(2)))
    assert torch.equal(drop_labels(y, replace(TINY, class_dropout=0.0), generator(1)), y)
    assert torch.equal(drop_labels(y[:, 0], config, generator(1)), dropped[:, 0])


def test_gradients_reach_every_parameter_and_survive_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        model = awake(TINY).train()
        model.activation_checkpointing = checkpointing
        x, t, y = inputs(TINY, rows=5, images=1)
        null = torch.full_like(y, TINY.null_label)
        (model(x, t, y, 1) + 2 * model(x, t, null, 1)).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-5)


def test_save_and_load_is_exact(tmp_path):
    model = awake(TINY)
    model.save_pretrained(tmp_path / "latte")
    loaded = Latte.from_pretrained(tmp_path / "latte")
    assert loaded.config == TINY
    assert not loaded.training
    assert model.state_dict().keys() == loaded.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    x, t, y = inputs(TINY)
    assert torch.equal(model(x, t, y), loaded(x, t, y))


def test_loading_refuses_what_is_no_latte(tmp_path):
    with pytest.raises(ValueError, match="nothing"):
        Latte.from_pretrained(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        Latte.from_pretrained(tmp_path / "empty")
    Latte(TINY).save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut"):
        Latte.from_pretrained(tmp_path / "cut")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"height": 5}, "height=5 must be a multiple of patch_size=2"),
        ({"width": 0}, "width=0 must be at least 1"),
        ({"num_frames": 0}, "num_frames=0 must be at least 1"),
        ({"hidden_size": 20, "num_heads": 3}, "hidden_size=20 must be a multiple of num_heads=3"),
        ({"hidden_size": 18}, "hidden_size=18 must be a multiple of 4"),
        ({"depth": 3}, "depth=3 must be even: in variant 1"),
        ({"variant": 4, "hidden_size": 12, "num_heads": 3}, "num_heads=3 must be even"),
        ({"num_classes": 0}, "num_classes=0 must be at least 1"),
        ({"class_dropout": 1.5}, "class_dropout=1.5 must be at most 1"),
        ({"mlp_ratio": 0.0}, "mlp_ratio=0.0 must be above 0"),
    ],
)
def test_bad_configs(field, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **field)


def test_an_unknown_variant():
    """Refused by the config, or by the type checker where tests run under one."""
    with pytest.raises((ValueError, TypeError), match="variant"):
        replace(TINY, variant=5)


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"'M' is unknown.+S, B, L, XL"):
        LatteConfig.preset("M", in_channels=4, num_frames=16, height=32, width=32)


def test_bad_inputs():
    model = Latte(TINY)
    x, t, y = inputs(TINY, images=1)
    with pytest.raises(ValueError, match=r"\(3, 4, 4, 6\).*num_images=0 .*\(3, 3, 4, 6\)"):
        model(x, t, y)
    with pytest.raises(ValueError, match="num_images=-1"):
        model(x[:, :, :2], t, y, -1)
    with pytest.raises(ValueError, match=r"y=5 \(the null label\)"):
        model(x, t, None, 1)
    with pytest.raises(ValueError, match="3 labels per row, but 1 images need 2"):
        model(x, t, torch.stack([y, y, y], dim=1), 1)
    with pytest.raises(ValueError, match="unconditional model"):
        Latte(replace(TINY, num_classes=None))(x, t, y, 1)
    with pytest.raises(ValueError, match="unconditional model"):
        drop_labels(y, replace(TINY, num_classes=None), generator(0))
    with pytest.raises(ValueError, match=r"labels from 0 to 6, .* classes 0 to 4"):
        drop_labels(torch.tensor([0, 6]), TINY, generator(0))


@pytest.mark.parametrize("length", [1, 5, 16, 17])
def test_attention_over_few_frames_is_attention(length):
    q, k, v = torch.randn(3, 6, 2, length, 8, dtype=torch.float64).requires_grad_().unbind()
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert_close(attend(q, k, v), wanted, rtol=1e-12, atol=1e-12)
    gradients = [
        torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (attend(q, k, v), wanted)
    ]
    assert_close(*gradients, rtol=1e-10, atol=1e-12)
