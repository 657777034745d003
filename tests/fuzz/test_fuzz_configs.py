"""Random values in every field of every training config."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import strategies as st

from data.pipeline import parse_config
from experiments.configs import (
    clips_t2i,
    tiny_conditional,
    tiny_ssr,
    tiny_style,
    tiny_t2i,
    tiny_t2v,
    ucf101_zero_shot,
)
from experiments.ucf101 import ZeroShotConfig
from stunet.schema import from_dict, to_dict
from stunet.training.config import TrainConfig, parse_train_config
from stunet.training.mesh import check_batch, make_mesh
from tests.fuzz.fuzzing import HUGE, NOT_FINITE, NUMBERS, check_cases

STAGES = [tiny_t2i, tiny_t2v, tiny_conditional, tiny_ssr, tiny_style, clips_t2i]
VALUES = [
    None,
    True,
    False,
    "",
    "text",
    "x" * 10_000,
    "a\0b",
    "line\nbreak",
    "\udcff",
    "no_such_module:name",
    ":",
    (),
    (1,),
    (1,) * 100,
    (HUGE, HUGE),
    ({},),
    (None, "a"),
    {},
    {"a": 1},
    {1: 2},
    *NUMBERS,
    *NOT_FINITE,
]


def fields_of(module: Any) -> dict[str, Any]:
    """Returns all fields of a config file, also those with a default."""
    config = parse_train_config(module.get_config().to_dict(), parse_config)
    fields = {**to_dict(config), **to_dict(config.stage)}
    return {**fields, "stage": config.stage.name, "data": to_dict(config.data)}


def paths(value: Any, prefix: tuple = ()) -> Iterator[tuple]:
    """Yields the path of every field, element and group of a config."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*prefix, key)
        if isinstance(item, dict | list | tuple):
            yield from paths(item, (*prefix, key))


def changed(values: dict[str, Any], path: tuple, value: Any) -> dict[str, Any]:
    """Returns a config with another value of one field."""
    result = copy.deepcopy(values)
    target = result
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return result


def start(values: dict[str, Any]) -> TrainConfig:
    """Does what `experiments.train` does before it reads or compiles anything."""
    config = parse_train_config(values, parse_config)
    mesh = make_mesh(config.mesh.fsdp, config.mesh.frames)
    check_batch(mesh, config.batch_size, config.data.num_frames)
    return config


def assert_valid(config: Any) -> None:
    """Checks that all values can be stored and computed with."""
    fields = to_dict(config)
    json.dumps(fields, allow_nan=False).encode()
    for path, value in flatten(fields):
        if isinstance(value, int | float):
            assert abs(value) < 2**63, f"accepted {path} = {value}"
        if isinstance(value, str):
            assert "\0" not in value, f"accepted {path} = {value!r}"


def flatten(value: Any, prefix: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Yields the path and the value of every leaf of JSON values."""
    if not isinstance(value, dict | list):
        yield prefix, value
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from flatten(item, (*prefix, key))


@pytest.fixture(scope="module", autouse=True)
def _devices():
    make_mesh()  # JAX starts


def test_training_configs():
    bases = {module.__name__.rpartition(".")[2]: fields_of(module) for module in STAGES}
    choices = [(name, path) for name, values in bases.items() for path in paths(values)]
    change = st.tuples(st.sampled_from(choices), st.sampled_from(VALUES))

    def run(case: tuple) -> None:
        (name, path), value = case
        config = start(changed(bases[name], path, value))
        assert_valid(config)

    check_cases(change, run)


def test_the_config_of_ucf101():
    base = to_dict(from_dict(ZeroShotConfig, ucf101_zero_shot.get_config().to_dict(), "config"))
    change = st.tuples(st.sampled_from(list(paths(base))), st.sampled_from(VALUES))

    def run(case: tuple) -> None:
        path, value = case
        assert_valid(from_dict(ZeroShotConfig, changed(base, path, value), "config"))

    check_cases(change, run)
