import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stunet.errors import UserError
from stunet.weights.trees import (
    compare_shapes,
    count_parameters,
    flatten,
    is_temporal,
    merge,
    partition,
    unflatten,
)

TREE = {
    "down_0": {"conv": {"kernel": np.ones((3, 2)), "bias": np.ones(2)}},
    "temporal_0": {"proj": {"kernel": np.zeros((2, 2))}},
    "scale": np.float32(3),
}


def test_flatten_and_back():
    flat = flatten(TREE)
    assert list(flat) == [
        "down_0/conv/kernel",
        "down_0/conv/bias",
        "temporal_0/proj/kernel",
        "scale",
    ]
    assert flat["down_0/conv/bias"] is TREE["down_0"]["conv"]["bias"]
    assert unflatten(flat) == TREE
    assert flatten({}) == unflatten({}) == {}


@pytest.mark.parametrize("flat", [{"a": 1, "a/b": 2}, {"a/b": 1, "a": 2}])
def test_a_path_cannot_be_both_leaf_and_branch(flat):
    with pytest.raises(ValueError, match="'a"):
        unflatten(flat)


@pytest.mark.parametrize("key", ["a/b", 3])
def test_ambiguous_keys(key):
    with pytest.raises(ValueError, match=f"{key!r}"):
        flatten({key: 1})


def test_partition_and_merge_are_inverse():
    selected, rest = partition(TREE, is_temporal)
    assert selected == {"temporal_0": TREE["temporal_0"]}
    assert rest == {"down_0": TREE["down_0"], "scale": TREE["scale"]}
    assert merge(rest, selected) == merge(selected, rest) == TREE
    assert partition(TREE, lambda path: False) == ({}, TREE)


@pytest.mark.parametrize("path", ["temporal_0/kernel", "down/temporal_conv/kernel", "temporal_x"])
def test_temporal_names(path):
    assert is_temporal(path)
    assert not is_temporal(path.replace("temporal_", "spatiotemporal_"))


def test_merge_joins_branches_and_refuses_overlap():
    assert merge({"a": {"x": 1}}, {"a": {"y": 2}}) == {"a": {"x": 1, "y": 2}}
    with pytest.raises(ValueError, match=r"a/x$"):
        merge({"a": {"x": 1}}, {"a": {"x": 1, "y": 2}})
    with pytest.raises(ValueError, match="'a/x"):
        merge({"a": {"x": 1}}, {"a": {"x": {"y": 2}}})


def test_count():
    assert count_parameters(TREE) == 6 + 2 + 4 + 1
    assert count_parameters(jax.eval_shape(lambda: {"a": jnp.zeros((7, 11))})) == 77


def test_equal_shapes_pass_with_any_dtype():
    compare_shapes(jax.eval_shape(lambda: TREE), TREE, "m")
    compare_shapes(TREE, jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), TREE), "m")


def test_differences_list_both_shapes():
    actual = {
        "down_0": {"conv": {"kernel": np.ones((3, 4)), "extra": np.ones(1)}},
        "temporal_0": TREE["temporal_0"],
        "scale": np.float32(3),
    }
    with pytest.raises(UserError) as error:
        compare_shapes(TREE, actual, "models/m")
    message = str(error.value)
    assert message.startswith("models/m: ") and "\n" not in message
    for part in (
        "wrong shape: down_0/conv/kernel (expected (3, 2), got (3, 4))",
        "missing: down_0/conv/bias (2,)",
        "unexpected: down_0/conv/extra (1,)",
    ):
        assert part in message


def test_at_most_two_names_are_listed():
    with pytest.raises(UserError, match=r"missing: p0 \(1,\), p1 \(1,\) and 11 more$"):
        compare_shapes({f"p{i}": np.ones(1) for i in range(13)}, {}, "m")
