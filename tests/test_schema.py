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
