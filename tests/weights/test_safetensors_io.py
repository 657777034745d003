import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from stunet.errors import UserError
from stunet.weights.safetensors_io import (
    TransformedTensor,
    open_safetensors,
    shard_file_names,
    split_into_shards,
    write_safetensors,
)

RNG = np.random.default_rng(0)
TENSORS = {
    "a/kernel": RNG.normal(size=(3, 5)).astype(np.float32),
    "half": RNG.normal(size=(7,)).astype(np.float16),
    "brain": RNG.normal(size=(2, 2, 3)).astype(ml_dtypes.bfloat16),
    "scalar": np.array(4.5),
    "none": np.zeros((0, 4), np.int32),
    "flags": np.array([True, False]),
    "turned": np.asfortranarray(RNG.normal(size=(4, 6)).astype(np.float32)),
}


def test_files_are_compatible_with_the_safetensors_library(tmp_path):
    own, foreign = tmp_path / "own.safetensors", tmp_path / "library.safetensors"
    write_safetensors(own, TENSORS, metadata={"format": "pt"})
    contiguous = {name: np.asarray(array, order="C") for name, array in TENSORS.items()}
    safetensors.numpy.save_file(contiguous, foreign)
    with safetensors.safe_open(own, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    for read in (
        safetensors.numpy.load_file(own),
        open_safetensors(own),
        open_safetensors(foreign),
    ):
        assert read.keys() == TENSORS.keys()
        for name, array in TENSORS.items():
            assert read[name].dtype == array.dtype and read[name].shape == array.shape
            assert read[name].nbytes == array.nbytes
            assert np.asarray(read[name]).tobytes() == array.tobytes()


def test_tensors_are_read_one_at_a_time(tmp_path):
    events = []

    def watched(name):
        def transpose(array):
            events.append(name)
            return array.T

        return TransformedTensor(TENSORS[name], TENSORS[name].shape[::-1], transpose)

    write_safetensors(tmp_path / "t", {name: watched(name) for name in ("a/kernel", "turned")})
    assert events == ["a/kernel", "turned"]  # none were read for the header
    opened = open_safetensors(tmp_path / "t")["a/kernel"]
    np.testing.assert_array_equal(np.asarray(opened), TENSORS["a/kernel"].T)


def test_split_by_size():
    sizes = {"a": 4, "b": 4, "c": 9, "d": 1, "e": 2}
    tensors = {name: np.zeros(size, np.int8) for name, size in sizes.items()}
    groups = split_into_shards(tensors, 8)
    assert [list(group) for group in groups] == [["a", "b"], ["c"], ["d", "e"]]
    assert split_into_shards({}, 8) == []
    assert shard_file_names("x", 1) == ["x.safetensors"]
    assert shard_file_names("x", 2) == [f"x-0000{i}-of-00002.safetensors" for i in (1, 2)]


def test_damaged_files(tmp_path):
    path = tmp_path / "t.safetensors"
    with pytest.raises(UserError, match=r"t\.safetensors: .*safetensors file \("):
        open_safetensors(path)
    write_safetensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"t\.safetensors: .*safetensors file \("):
        open_safetensors(path)
