"""EfficientNet-Lite0, and the conversion of its weights from PyTorch's first file format."""

import collections
import pickle
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import import_efficientnet
from stunet.conversion.array_pickles import read_torch_pickle
from stunet.errors import UserError
from stunet.evaluation.efficientnet import RESOLUTION, EfficientNetLite0, load_efficientnet
from stunet.evaluation.torch_weights import torch_parameters
from stunet.weights.trees import flatten
from tests.test_parsers import PROTOCOLS, Payload, executed  # noqa: F401

NETWORK = EfficientNetLite0(4, 5)


class Global:
    """Pickles as a global of another module."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickles as the call of a global."""

    def __init__(self, function, arguments):
        self.function, self.arguments = function, arguments


class Storage(tuple):
    """Pickles as a persistent id."""


class Writer(pickle._Pickler):
    """Writes globals by name, without importing them, as PyTorch does."""

    def persistent_id(self, obj):
        return tuple(obj) if isinstance(obj, Storage) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(b"R")
        else:
            super().save(obj, save_persistent_id)


def torch_file(tensors, entries=None):
    """Returns a file in PyTorch's first format."""
    import io

    content = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(value, content, 2)
    rebuild, kind = Global("torch._utils", "_rebuild_tensor_v2"), Global("torch", "FloatStorage")
    state, blocks = collections.OrderedDict(), []
    for number, (name, array) in enumerate(tensors.items()):
        # Axes in another order in memory, as in the published file.
        order = np.argsort(-np.arange(array.ndim))
        memory = np.ascontiguousarray(array.transpose(order))
        strides = np.array(memory.strides)[order] // 4
        storage = Storage(("storage", kind, str(number), "cpu", array.size, None))
        state[name] = Call(rebuild, (storage, 0, array.shape, tuple(map(int, strides)), False, {}))
        blocks.append(memory)
    Writer(content, 2).dump(state | (entries or {}))
    pickle.dump([str(number) for number in range(len(blocks))], content, 2)
    for block in blocks:
        content.write(struct.pack("<q", block.size) + block.tobytes())
    return content.getvalue()


@pytest.fixture(scope="module")
def tensors():
    frame = jax.ShapeDtypeStruct((1, RESOLUTION, RESOLUTION, 3), jnp.float32)
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), frame)["params"]
    rng = np.random.default_rng(0)
    names = torch_parameters(shapes)
    assert len(flatten(shapes)) == 247
    return {entry.name: rng.random(entry.shape, np.float32) for entry in names.values()}


def test_conversion(tensors, tmp_path, capsys):
    counted = {"_bn0.num_batches_tracked": np.float32([3.0])}
    file, out = tmp_path / "lite0.pth", tmp_path / "lite0.safetensors"
    file.write_bytes(torch_file(tensors | counted))
    import_efficientnet.main(["", str(file), str(out)])
    assert "247 tensors" in capsys.readouterr().out
    converted = load_file(out)
    assert converted.keys() == tensors.keys()
    for name, expected in tensors.items():
        np.testing.assert_array_equal(converted[name], expected)


def test_features_of_frames(tensors, tmp_path):
    from safetensors.numpy import save_file

    out = tmp_path / "lite0.safetensors"
    save_file(tensors, out)
    extractor = load_efficientnet(out)
    clips = np.random.default_rng(1).uniform(-1, 1, (2, 3, 40, 30, 3)).astype(np.float32)
    features = extractor(clips, batch_size=2)
    assert features.shape == (2, 3, 1280 * 4 // 32)
    single = extractor(clips[:1, 1:2], batch_size=1)
    np.testing.assert_allclose(features[0, 1], single[0, 0], rtol=1e-5, atol=1e-6)


def test_code_in_a_file_is_not_run(executed, tensors):  # noqa: F811
    for protocol in PROTOCOLS:
        with pytest.raises(UserError, match=r"names \w+"):
            read_torch_pickle(pickle.dumps(Payload(executed), protocol), "file")
    with pytest.raises(UserError, match=r"names os\.system"):
        call = Call(Global("os", "system"), (f"touch {executed}",))
        read_torch_pickle(torch_file({}, {"x": call}), "file")


def test_other_files_are_refused(tensors, tmp_path):
    content = torch_file(dict(list(tensors.items())[:2]))
    for changed in (b"", content[:50], content[:-9], pickle.dumps([1]), b"PK\x03\x04"):
        with pytest.raises(UserError) as caught:
            read_torch_pickle(changed, "lite0.pth")
        assert str(caught.value).startswith("lite0.pth: ") and "\n" not in str(caught.value)
    storage = Storage(("storage", Global("torch", "FloatStorage"), "0", "cpu", 3, None))
    for offset, shape in ((0, (2**40,)), (-1, (2,)), (2, (2,))):
        arguments = (storage, offset, shape, (1,), False, {})
        call = Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)
        with pytest.raises(UserError, match="storage|index 3"):
            read_torch_pickle(torch_file({"a": np.ones(3, np.float32)}, {"b": call}), "file")
    with pytest.raises(UserError, match="I3D"):
        file = tmp_path / "i3d.safetensors"
        from safetensors.numpy import save_file

        save_file({"Conv3d_1a_7x7.conv3d.weight": np.ones((2, 2))}, file)
        load_efficientnet(file)
