"""Configs survive JSON exactly, and JSON that is not a config is refused by name."""

import json
import math
import os
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.errors import ConfigError, DiskError
from unmask.storage.config import dump_json, from_json, list_differences, load_json, read_json, to_json, write_json


@dataclass(frozen=True, kw_only=True)
class Cosine:
    pass


@dataclass(frozen=True, kw_only=True)
class Power:
    exponent: float = 2.0

    def __post_init__(self) -> None:
        if self.exponent <= 0:
            raise ConfigError(f"exponent is {self.exponent}; make it positive")


@dataclass(frozen=True, kw_only=True)
class Ramp:
    start: float
    end: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Model:
    depth: int
    dropout: float = 0.0
    grid: tuple[int, ...] = (8, 8)


@dataclass(frozen=True, kw_only=True)
class Run:
    model: Model
    name: str = "run"
    compile: bool = False
    schedule: Cosine | Power = field(default_factory=Cosine)
    scale: float | tuple[float, ...] | Ramp = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    seed: int | None = None
    strategy: Literal["none", "ddp"] = "none"
    phases: tuple[tuple[int, Cosine | Power], ...] = ()
    limit: int | float = 1


floats = st.floats(allow_nan=False)
schedules = st.builds(Cosine) | st.builds(Power, exponent=st.floats(min_value=1e-300, allow_nan=False))
models = st.builds(Model, depth=st.integers(), dropout=floats, grid=st.lists(st.integers()).map(tuple))
runs = st.builds(
    Run,
    model=models,
    name=st.text(),
    compile=st.booleans(),
    schedule=schedules,
    scale=floats | st.lists(floats).map(tuple) | st.builds(Ramp, start=floats, end=floats),
    betas=st.tuples(floats, floats),
    seed=st.none() | st.integers(),
    strategy=st.sampled_from(["none", "ddp"]),
    phases=st.lists(st.tuples(st.integers(), schedules)).map(tuple),
    limit=st.integers() | floats,
)
SMALL = {"model": {"depth": 2}}


@given(runs)
def test_round_trip(run: Run) -> None:
    text = dump_json(run)
    assert from_json(Run, json.loads(text)) == run
    # repr also tells 1 from 1.0 and 0.0 from -0.0.
    assert repr(from_json(Run, json.loads(text))) == repr(run)


@given(runs, runs)
def test_differences_are_empty_exactly_for_equal_configs(a: Run, b: Run) -> None:
    assert list_differences(a, a) == []
    assert (list_differences(a, b) == []) == (to_json(a) == to_json(b))


def test_the_tag_is_written_only_where_it_is_needed() -> None:
    data = to_json(Run(model=Model(depth=2), schedule=Power(exponent=3.0), scale=Ramp(start=0.5)))
    assert data["schedule"] == {"type": "Power", "exponent": 3.0}
    assert data["scale"] == {"start": 0.5, "end": 1.0}
    assert "type" not in data["model"]


def test_an_int_is_a_float_but_nothing_else_is_converted() -> None:
    run = from_json(Run, {"model": {"depth": 2, "dropout": 0}, "scale": 3, "limit": 7})
    assert type(run.model.dropout) is float
    assert type(run.scale) is float
    assert type(run.limit) is int


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"depht": 2}}, "config.model.depht: no such field; did you mean 'depth'?"),
        ({"model": {}}, "config.model.depth: missing; give it as int"),
        ({"model": {"depth": True}}, "config.model.depth: expected int, got True"),
        ({"model": {"depth": 2.0}}, "config.model.depth: expected int, got 2.0"),
        ({"model": {"depth": "2"}}, "config.model.depth: expected int, got '2'"),
        ({"model": {"depth": 2, "grid": [8, "8"]}}, "config.model.grid[1]: expected int, got '8'"),
        ({"model": {"depth": 2, "grid": 8}}, "config.model.grid: expected tuple[int, ...], got 8"),
        ({"model": {"depth": 2, "dropout": math.nan}}, "config.model.dropout: expected float, got nan"),
        ({"model": {"depth": 2, "dropout": 10**400}}, "config.model.dropout: expected float"),
        ({"model": None}, "config.model: expected Model, got None"),
        ({"model": [2]}, "config.model: expected Model, got [2]"),
        ({"compile": 1}, "config.compile: expected bool, got 1"),
        ({"betas": [0.9]}, "config.betas: expected 2 values, got 1"),
        ({"seed": "x"}, "config.seed: expected int or null, got 'x'"),
        ({"scale": "x"}, "config.scale: expected float or tuple[float, ...] or Ramp, got 'x'"),
        ({"scale": [1.0, None]}, "config.scale[1]: expected float, got None"),
        ({"scale": {"end": 2.0}}, "config.scale.start: missing"),
        ({"scale": {"type": "Ramp", "start": 2.0}}, "config.scale.type: no such field"),
        ({"schedule": {"exponent": 2.0}}, 'config.schedule: add "type", one of Cosine, Power'),
        ({"schedule": {"type": "Cosin"}}, "config.schedule.type: no 'Cosin' here; did you mean 'Cosine'?"),
        ({"schedule": {"type": "Run"}}, "config.schedule.type: no 'Run' here"),
        ({"schedule": {"type": ["Power"]}}, "config.schedule.type: no ['Power'] here"),
        ({"schedule": {"type": "Cosine", "exponent": 2.0}}, "config.schedule.exponent: no such field"),
        ({"schedule": {"type": "Power", "exponent": -1.0}}, "config.schedule: exponent is -1.0; make it positive"),
        ({"strategy": "fsdp"}, "config.strategy: expected Literal['none', 'ddp'], got 'fsdp'"),
        ({"phases": [[1, {"type": "Power", "exponnent": 1}]]}, "config.phases[0][1].exponnent: no such field"),
        ({"_target_": "os.system"}, "config._target_: no such field"),
    ],
)
def test_what_is_wrong_is_named(change: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_json(Run, SMALL | change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "depth", "start", "model", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.sampled_from(list(Run.__dataclass_fields__)), json_values)
def test_any_json_is_either_a_config_or_a_config_error(name: str, value: object) -> None:
    try:
        run = from_json(Run, SMALL | {name: value})
    except ConfigError:
        return
    assert from_json(Run, to_json(run)) == run


@pytest.mark.parametrize("value", ["4", 4.0, True, None, (4,)])
def test_a_config_built_with_a_wrong_type_is_not_written(value: object) -> None:
    with pytest.raises(ConfigError, match=r"config\.model\.depth: expected int"):
        to_json(Run(model=_unchecked(Model(depth=1), "depth", value)))


def test_a_subclass_is_not_written_as_its_parent() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Deeper(Model):
        extra: int = 1

    with pytest.raises(ConfigError, match=r"config\.model: expected Model"):
        to_json(Run(model=Deeper(depth=1)))


def test_ambiguous_unions_are_a_programming_error() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd:
        type: str = "x"

    @dataclass(frozen=True, kw_only=True)
    class Holder:
        odd: Odd | Cosine = field(default_factory=Cosine)

    with pytest.raises(TypeError, match="give its dataclasses different names"):
        to_json(Holder())


def test_differences_read_as_sentences() -> None:
    a = Run(model=Model(depth=4), schedule=Power(exponent=2.0))
    b = Run(model=Model(depth=6, grid=(8,)))
    assert list_differences(a, b) == [
        "model.depth 4 there, 6 here",
        "model.grid [8, 8] there, [8] here",
        'schedule.type "Power" there, "Cosine" here',
        "schedule.exponent 2.0 there, absent here",
    ]
    assert list_differences(to_json(a), b) == list_differences(a, b)


def test_files(tmp_path) -> None:
    path = tmp_path / "config.json"
    run = Run(model=Model(depth=4), seed=3)
    write_json(path, Run(model=Model(depth=1)))
    write_json(path, run)
    assert read_json(path, Run) == run
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]
    assert path.read_text().startswith('{\n  "model": {\n    "depth": 4')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "is not valid JSON"),
        (b'{"model": {"depth": 1, "depth": 2}}', "key 'depth' is given twice"),
        (b'{"model": {"depth": 1, "dropout": NaN}}', "NaN"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"1" * 5000, "is not valid JSON"),
        (b" " * (1 << 20) + b"{}", "longer than 1048576 bytes"),
        (b'{"model": {"depth": "x"}}', "config.json.model.depth: expected int"),
    ],
)
def test_hostile_files(tmp_path, text: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        read_json(path, Run)


def test_a_missing_file_and_values_without_json_form(tmp_path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_json(tmp_path / "none.json")
    for value in ({"x": math.nan}, {"x": object()}, {1: 2, "1": 3}):
        with pytest.raises(ConfigError):
            dump_json(value)
    assert json.loads(dump_json({"x": math.inf})) == {"x": math.inf}


@pytest.mark.parametrize("name", ["fsync", "replace", "open"])
def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch, name: str) -> None:
    path = tmp_path / "config.json"
    write_json(path, {"old": 1})

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        with pytest.raises(DiskError, match="No space left"):
            write_json(path, {"new": 2})
    assert load_json(path) == {"old": 1}
    assert len(list(tmp_path.iterdir())) == 1


def _unchecked(config: Model, name: str, value: object) -> Model:
    object.__setattr__(config, name, value)
    return config
