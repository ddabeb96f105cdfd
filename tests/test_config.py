import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Lt, MinLen, MultipleOf

from benchmarks.config_mutations import _nested
from common.cli import parse
from common.config import MAY_CHANGE, Config, fixed_differences, fixed_values, walk_fields


@dataclass(frozen=True, kw_only=True)
class Rate(Config):
    """A learning rate."""

    value: Annotated[float, Gt(0), Lt(1)] = 0.5
    """Per step."""
    steps: Annotated[int, Ge(1), MAY_CHANGE] = 10
    decay: bool = False

    def fixed_fields(self) -> frozenset[str]:
        return frozenset({"steps"} if self.decay else ())


@dataclass(frozen=True, kw_only=True)
class Command(Config):
    """A command."""

    out: Annotated[str, MinLen(1), MAY_CHANGE]
    size: Annotated[int | None, Ge(8), MultipleOf(8)] = None
    mode: Literal["a", "b"] = "a"
    betas: tuple[Annotated[float, Ge(0)], float] = (0.5, 0.5)
    names: list[str] = field(default_factory=list)
    flag: bool = False
    rate: Rate = field(default_factory=Rate)
    shown: Annotated[Rate, MAY_CHANGE] = Rate()
    other: Rate | None = None
    rates: list[Rate] = field(default_factory=list)
    file: Path = Path("x")
    files: tuple[Path, ...] = ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "size=0 must be at least 8"),
        ({"size": 12}, "size=12 must be a multiple of 8"),
        ({"size": 8.0}, "size=8.0 must be int or null"),
        ({"size": True}, "size=True must be int or null"),
        ({"mode": "c"}, "mode='c' must be one of a, b"),
        ({"mode": None}, "mode=null must be one of a, b"),
        ({"betas": (0.1,)}, r"betas=\(0.1,\) must be a list \(float, float\)"),
        ({"betas": (-0.1, 1)}, r"betas\[0\]=-0.1 must not be negative"),
        ({"betas": (0.1, float("nan"))}, r"betas\[1\]=nan must be a finite number"),
        ({"names": ["x", 1]}, r"names\[1\]=1 must be a string"),
        ({"names": None}, "names=null must be a list of a string"),
        ({"out": ""}, "out='' must not be empty"),
        ({"out": "null"}, "out=null must be a string"),
        ({"file": Path("~")}, "file=null must be a path"),
        ({"size": 8 * 10**30}, "size=8.*0 must be a whole number of 64 bits"),
        ({"flag": 1}, "flag=1 must be true or false"),
        ({"rate": None}, "rate=null must be a mapping"),
        ({"file": "x"}, "file='x' must be a path"),
    ],
)
def test_a_value_that_its_annotation_excludes_is_refused_by_name(values, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Command(**({"out": "x"} | values))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 0, 1, None, "1"])
def test_a_number_out_of_its_range_is_refused(value):
    with pytest.raises(ValueError, match=r"^value=.* must "):
        Rate(value=value)


def test_whole_numbers_stand_for_floats_and_null_where_it_is_allowed():
    assert Command(out="x", betas=(0, 1), size=None).betas == (0, 1)


@pytest.mark.parametrize(
    ("yaml", "key"),
    [
        ("rate: {value: .inf}", "rate.value"),
        ("rate: {value: .nan}", "rate.value"),
        ("rate: {value: null}", "rate.value"),
        ("rate: {value: -1}", "rate.value"),
        ("other: {value: null}", "other.value"),
        ("other: {steps: null}", "other.steps"),
        ("rates: [{steps: 2}, {value: null}]", r"rates\[1\].value"),
        ("rates: [{steps: 2}, {value: .inf}]", r"rates\[1\].value"),
        ("shown: {steps: 0}", "shown.steps"),
        ("rate: null", "rate"),
        ("betas: [.inf, 1]", r"betas\[0\]"),
        ("rate: [.nan, .nan]", "rate"),
        ("file: ''", "file"),
        ("files: [x, '']", "files"),
        ("rate: []", "rate"),
        ("other: [1]", "other"),
    ],
)
def test_the_full_path_of_a_refused_value_is_named(yaml, key, tmp_path):
    (tmp_path / "a.yaml").write_text(f"out: x\n{yaml}\n")
    with pytest.raises(ValueError, match=rf"(^|\"){key}[=\":]"):
        parse(Command, ["--config", str(tmp_path / "a.yaml")])


def test_an_option_that_holds_itself_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("out: x\nrate: &a [*a]\n")
    with pytest.raises(ValueError, match="recursive YAML alias"):
        parse(Command, ["--config", str(tmp_path / "a.yaml")])


def test_a_changed_config_leaves_the_others_of_its_command_as_they_are():
    options = {"rate": {"value": 0.5}, "out": "x"}
    changed = _nested({**options, "rate.value": None})
    assert changed == {"rate": {"value": None}, "out": "x"}
    assert options == {"rate": {"value": 0.5}, "out": "x"}


def test_help_tells_the_bounds(capsys):
    with pytest.raises(SystemExit):
        parse(Command, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Per step. (type: float, above 0, below 1, default: 0.5)" in text
    assert "int | null, at least 8, multiple of 8, default: null" in text
    assert "int, at least 1, may change in a continued run, default: 10" in text
    assert "Annotated" not in text.split("options:")[1]


def test_a_flag_alone_is_true_and_lists_grow_by_repeating():
    made = parse(Command, ["--out", "x", "--flag", "--names", "a", "--names=b", "--rate.decay"])
    assert made.flag
    assert made.rate.decay
    assert made.names == ["a", "b"]
    assert parse(Command, ["--flag", "false", "--out=x", "--names", "[c, d]"]).names == ["c", "d"]
    with pytest.raises(ValueError, match="unrecognized"):
        parse(Command, ["--ou", "x"])


def begun(**values):
    return json.loads(json.dumps(asdict(Command(**({"out": "x"} | values))), default=str))


def test_what_a_rerun_must_not_change_is_named_by_its_path():
    old = begun(other=Rate())
    new = Command(out="x", rate=Rate(value=0.25), other=Rate(value=0.1), size=16)
    assert fixed_differences(old, new) == [
        "size was None, now 16",
        "rate.value was 0.5, now 0.25",
        "other.value was 0.5, now 0.1",
    ]
    assert fixed_differences(begun(), Command(out="x")) == []
    assert fixed_differences(begun() | {"gone": 1}, Command(out="x")) == ["gone was 1, now None"]


def test_marked_fields_may_change_at_their_own_path_alone():
    changed = Command(out="y", rate=Rate(steps=20), shown=Rate(value=0.1, steps=5))
    assert fixed_differences(begun(), changed) == []
    found = fixed_differences(begun(), Command(out="x", file=Path("steps"), names=["out"]))
    assert found == ["names was [], now ['out']", "file was 'x', now 'steps'"]


def test_configs_in_a_list_are_recorded_by_their_values():
    made = Command(out="x", rates=[Rate(), Rate(value=0.1)])
    recorded = json.loads(json.dumps(fixed_values(made)))
    assert fixed_differences(recorded, made) == []
    assert fixed_differences(recorded, Command(out="x", rates=[Rate()]))[0].startswith("rates was")


def test_a_marked_field_is_fixed_where_another_depends_on_it():
    old, new = begun(rate=Rate(decay=True)), Command(out="x", rate=Rate(decay=True, steps=20))
    assert fixed_differences(old, new) == ["rate.steps was 10, now 20"]


def test_fields_are_walked_by_their_paths():
    found = {each.name: each.may_change for each in walk_fields(Command)}
    assert found["rate.steps"]
    assert found["shown.value"]
    assert found["other.steps"]
    assert found["out"]
    assert not found["rate.value"]
    assert not found["other.value"]
    assert not found["size"]
