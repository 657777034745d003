import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from stunet.errors import UserError
from stunet.schema import from_dict, to_dict


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
)


def test_round_trip_through_json():
    assert from_dict(Outer, json.loads(json.dumps(to_dict(FULL))), "c.json") == FULL


def test_defaults_and_none():
    assert from_dict(Outer, {"name": "x", "widths": [], "inner": None}, "c") == Outer("x", ())


def test_integer_becomes_the_float_that_was_meant():
    rate = from_dict(Inner, {"width": 1, "rate": 2}, "c").rate
    assert rate == 2.0 and isinstance(rate, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 1}, "c.json: unknown field 'widht'; did you mean 'widths'?"),
        ({"zzz": 1}, "c.json: unknown field 'zzz'; known are name, widths, pair"),
        ({"name": 3}, "field 'name' must be str, got 3"),
        ({"flag": 1}, "field 'flag' must be bool, got 1"),
        ({"kind": "c"}, "field 'kind' must be one of 'a', 'b', got 'c'"),
        ({"widths": 4}, "field 'widths' must be a list, got 4"),
        ({"widths": [1, "2"]}, r"field 'widths\[1\]' must be int, got '2'"),
        ({"widths": [True]}, r"field 'widths\[0\]' must be int, got True"),
        ({"pair": [1]}, r"field 'pair' must be a list of 2, got \[1\]"),
        ({"inner": 5}, "field 'inner' must be Inner's fields, got 5"),
        ({"inner": {}}, "c.json: inner: missing field width"),
        ({"inner": {"width": 0}}, "c.json: inner: width must be positive, got 0"),
        ({"levels": [{"width": 1, "x": 2}]}, r"c.json: levels\[0\]: unknown field 'x'"),
        ({"depth": "deep"}, "field 'depth' must be int or tuple"),
    ],
)
def test_errors_name_the_field(change, message):
    with pytest.raises(UserError, match=message):
        from_dict(Outer, {"name": "x", "widths": [1], **change}, "c.json")


def test_missing_fields_are_all_named():
    with pytest.raises(UserError, match=r"c\.json: missing fields name, widths$"):
        from_dict(Outer, {}, "c.json")


def test_not_a_mapping():
    with pytest.raises(UserError, match=r"c\.json: expected Outer's fields, got 3"):
        from_dict(Outer, 3, "c.json")
