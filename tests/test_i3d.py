"""Inception-I3D: the reference output, its size, and refusals of what would give other features."""

import pytest
import torch

from eval.features.i3d import InceptionI3D, pad_same
from tests.builders.vectors import load_case, uniform


def test_reference_output():
    case = load_case("i3d")
    model = InceptionI3D(eps=1e-5)
    model.load_state_dict(case.weights())
    with torch.inference_mode():
        output = model(uniform(case.info["input_seed"], case.info["input_shape"]))
    expected = case.outputs["output"]
    assert ((output - expected).norm() / expected.norm()).item() < 1e-4


def test_size_and_key_names():
    with torch.device("meta"):
        model = InceptionI3D()
    assert sum(p.numel() for p in model.parameters()) == 12_697_264
    keys = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert keys == load_case("i3d").info["keys"]
    assert model.get_submodule("Mixed_4c.b1b.bn").eps == 1e-3
    assert not model.training


def test_same_padding_puts_the_odd_pixel_behind():
    x = torch.ones(1, 1, 5, 6, 4)
    padded = pad_same(x, (3, 3, 2), (1, 2, 2))
    assert padded.shape == (1, 1, 7, 7, 4)
    assert padded[0, 0, 0].sum() == 0  # t: one in front, one behind
    assert padded[0, 0, 1, 0].sum() == 4  # h: none in front
    assert padded[0, 0, 1, 6].sum() == 0  # h: one behind


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 16, 256, 256), "I3D needs b 3 t 224 224"),
        ((1, 1, 16, 224, 224), "I3D needs b 3 t 224 224"),
        ((1, 3, 8, 224, 224), "8 frames, but I3D needs 9"),
    ],
)
def test_other_sizes_are_refused(shape, message):
    with torch.device("meta"):
        model = InceptionI3D()
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape, device="meta"))
