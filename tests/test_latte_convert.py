"""Public checkpoints in and out."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from latte import LatteConfig
from latte.convert import from_released, load_released, to_released
from tests.builders.vectors import load_case, normal

CONFIG = LatteConfig(
    in_channels=4,
    num_frames=5,
    height=8,
    width=8,
    hidden_size=48,
    depth=4,
    num_heads=4,
    num_classes=6,
)


def released():
    """A checkpoint as the public files hold it: derived weights and the given tables."""
    case = load_case("latte_class")
    tables = {key: case.outputs[key] for key in ("pos_embed", "temp_embed")}
    return case, case.weights() | tables


def test_a_released_checkpoint_gives_the_released_output():
    case, state = released()
    model = from_released(state, CONFIG)
    x = normal(case.info["input_seed"], case.info["input_shape"]).transpose(1, 2)
    output = model(x, torch.tensor(case.info["t"]), torch.tensor(case.info["y"]))
    assert_close(output, case.outputs["output"].transpose(1, 2), rtol=1e-5, atol=1e-5)
    assert not model.training


def test_the_round_trip_is_exact():
    _, state = released()
    back = to_released(from_released(state, CONFIG))
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(back[key], value), key


def test_exported_weights_are_copies():
    _, state = released()
    model = from_released(state, CONFIG)
    to_released(model)["x_embedder.proj.bias"].zero_()
    assert model.x_embedder.proj.bias.count_nonzero() > 0


def test_a_public_file_is_found_where_all_weights_are(tmp_path, monkeypatch):
    _, state = released()
    torch.save({"ema": state}, tmp_path / "ours.pt")
    monkeypatch.setenv("IVVAE_LATTE_UCF101", str(tmp_path / "ours.pt"))
    for model in (
        load_released("ucf101", CONFIG),
        load_released("ffs", CONFIG, tmp_path / "ours.pt"),
    ):
        assert torch.equal(model.x_embedder.proj.bias, state["x_embedder.proj.bias"])
    monkeypatch.setenv("IVVAE_LATTE_FFS", str(tmp_path / "none.pt"))
    with pytest.raises(ValueError, match=r"none\.pt: no such file\. Get ffs\.pt \(2695 MB\) from"):
        load_released("ffs", CONFIG)
    with pytest.raises(ValueError, match=r"name='sky': use one of ucf101, skytimelapse"):
        load_released("sky", CONFIG)


def test_ema_and_model_of_a_file():
    _, state = released()
    other = {key: value + 1 if "bias" in key else value for key, value in state.items()}
    file = {"model": other, "ema": state, "args": None}
    for which, expected in (("ema", state), ("model", other)):
        bias = from_released(file, CONFIG, which=which).x_embedder.proj.bias
        assert torch.equal(bias, expected["x_embedder.proj.bias"])
    with pytest.raises(ValueError, match="no 'ema' weights; it holds model"):
        from_released({"model": other}, CONFIG)


def test_every_key_that_does_not_fit_is_named():
    _, state = released()
    del state["blocks.1.attn.qkv.bias"]
    state["extra"] = torch.zeros(1)
    state["t_embedder.mlp.0.bias"] = torch.zeros(7)
    with pytest.raises(ValueError, match="does not fit the config") as error:
        from_released(state, CONFIG)
    message = str(error.value)
    assert "missing blocks.1.attn.qkv.bias" in message
    assert "unexpected extra" in message
    assert "t_embedder.mlp.0.bias has shape (7,), not (48,)" in message
    assert "\n" not in message


def test_a_config_of_another_size_is_refused():
    _, state = released()
    with pytest.raises(ValueError, match=r"unexpected y_embedder\.embedding_table"):
        from_released(state, replace(CONFIG, num_classes=None))
    with pytest.raises(ValueError, match=r"temp_embed .*\(1, 5, 48\), not \(1, 7, 48\)"):
        from_released(state, replace(CONFIG, num_frames=7))
    with pytest.raises(ValueError, match=r" and \d+ more"):
        from_released(state, replace(CONFIG, hidden_size=64))


@pytest.mark.parametrize("key", ["pos_embed", "temp_embed"])
def test_another_position_table_is_refused(key):
    _, state = released()
    state[key] = state[key].flip(1)
    with pytest.raises(ValueError, match=f"{key} differs from the sine-cosine table"):
        from_released(state, CONFIG)


def test_a_variant_that_was_never_released_is_refused():
    """2 and 4 have the same keys and shapes as 1: nothing else would tell."""
    _, state = released()
    with pytest.raises(ValueError, match="variant=2, but public ones are of 1"):
        from_released(state, replace(CONFIG, variant=2))
