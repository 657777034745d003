import json
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import pytest

from stunet.errors import UserError
from stunet.schema import MAX_SEED, Range, Seed, check_fields, from_dict, to_dict


@dataclass(frozen=True)
class Inner:
    width: int
    rate: float = 0.5

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width must be positive, got {self.width}")


@dataclass(frozen=True)
class Outer:
    name: str
    widths: tuple[int, ...]
    pair: tuple[int, float] = (1, 2.0)
    inner: Inner | None = None
    levels: tuple[Inner, ...] = ()
    kind: Literal["a", "b"] = "a"
    flag: bool = False
    extra: dict = field(default_factory=dict)
    depth: int | tuple[int, ...] = 1
    source: Inner | str | None = None


FULL = Outer(
    name="x",
    widths=(1, 2, 3),
    pair=(3, 4.5),
    inner=Inner(7, 0.25),
    levels=(Inner(1), Inner(2)),
    kind="b",
    flag=True,
    extra={"any": [1, 2]},
    depth=(1, 2),
    source="folder",
)


def test_round_trip_through_json():
    assert from_dict(Outer, json.loads(json.dumps(to_dict(FULL))), "c.json") == FULL


def test_defaults_and_none():
    assert from_dict(Outer, {"name": "x", "widths": [], "inner": None}, "c") == Outer("x", ())


def test_integers_are_converted_for_float_fields():
    rate = from_dict(Inner, {"width": 1, "rate": 2}, "c").rate
    assert rate == 2.0 and isinstance(rate, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 1}, "c.json: .*'widht'.*'widths'"),
        ({"zzz": 1}, "c.json: .*'zzz'.*name, widths, pair"),
        ({"name": 3}, "c.json: name.* 3, .*str"),
        ({"flag": 1}, "c.json: flag.* 1, .*bool"),
        ({"kind": "c"}, "c.json: kind.* 'c', .*'a', 'b'"),
        ({"widths": 4}, "c.json: widths.* 4, .*list"),
        ({"widths": [1, "2"]}, r"c.json: widths\[1\].* '2', .*int"),
        ({"widths": [True]}, r"c.json: widths\[0\].* True, .*int"),
        ({"pair": [1]}, r"c.json: pair.* \[1\], .*list of 2"),
        ({"inner": 5}, "c.json: inner.* 5, .*Inner"),
        ({"inner": {}}, "c.json: inner: .*width"),
        ({"inner": {"width": 0}}, "c.json: inner: width.* 0"),
        ({"levels": [{"width": 1, "x": 2}]}, r"c.json: levels\[0\]: .*'x'"),
        ({"source": {"width": 0}}, "c.json: source: width.* 0"),
        ({"source": 5}, "c.json: source.* 5, .*Inner or str"),
        ({"depth": "deep"}, "c.json: depth.* 'deep', .*int or tuple"),
    ],
)
def test_errors_contain_field_value_and_expectation(change, message):
    with pytest.raises(UserError, match=message):
        from_dict(Outer, {"name": "x", "widths": [1], **change}, "c.json")


def test_all_missing_fields_are_listed():
    with pytest.raises(UserError, match=r"c\.json: .*name, widths$"):
        from_dict(Outer, {}, "c.json")


def test_not_a_mapping():
    with pytest.raises(UserError, match=r"c\.json: .*3, .*Outer"):
        from_dict(Outer, 3, "c.json")


@dataclass(frozen=True)
class Numbers:
    count: int = 1
    rate: float = 1.0
    share: Annotated[float, Range(0, 1)] = 0.5
    seed: Seed = 0
    shift: Annotated[float, Range(-10)] = 0.0
    widths: tuple[Annotated[int, Range(2, 8)], ...] = ()
    steps: Annotated[int, Range(0)] | None = None


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("count", 0, "1"),
        ("count", 10**20, "2147483647"),
        ("count", 1.5, "int"),
        ("rate", 0, "above 0"),
        ("rate", float("nan"), "1e.09"),
        ("rate", float("inf"), "1e.09"),
        ("rate", 10**400, "1e.09"),
        ("share", 1.01, "1"),
        ("share", float("nan"), "1"),
        ("share", True, "float"),
        ("seed", -1, str(MAX_SEED)),
        ("seed", 2**32, str(MAX_SEED)),
        ("shift", -11, "-10"),
        ("widths", [2, 9], "8"),
        ("steps", -1, "0"),
    ],
)
def test_numbers_out_of_range(name, value, limit):
    with pytest.raises(UserError, match=rf"c\.json: {name}.* {limit}"):
        from_dict(Numbers, {name: value}, "c.json")
    with pytest.raises(UserError, match=rf"^top\.{name}.* {limit}"):
        check_fields(Numbers(**{name: value}), "top.")


def test_numbers_at_the_ends_of_their_range():
    ends = {"count": 2**31 - 1, "share": 1, "seed": MAX_SEED, "shift": -10, "widths": [2, 8]}
    numbers = from_dict(Numbers, ends | {"steps": 0}, "c")
    assert numbers == Numbers(2**31 - 1, 1.0, 1.0, MAX_SEED, -10.0, (2, 8), 0)
    check_fields(numbers)


def test_numbers_of_numpy_become_plain():
    numbers = from_dict(Numbers, {"count": np.int64(3), "rate": np.float32(0.5)}, "c")
    assert type(numbers.count) is int and type(numbers.rate) is float
    assert (numbers.count, numbers.rate) == (3, 0.5)


def test_a_text_with_nul_is_refused():
    with pytest.raises(UserError, match=r"c: name.*NUL"):
        from_dict(Outer, {"name": "a\0b", "widths": []}, "c")
