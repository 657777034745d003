"""Computes the text states of a dataset once, with the frozen text encoder of `init_from`.

    python -m experiments.cache_text --config=experiments/configs/tiny_t2v.py

Then train with `--config.data.text_states=True`: batches carry states instead of tokens, and
the text encoder is never run. The states lie next to the dataset's records.
"""

import sys

from absl import flags
from ml_collections import config_flags

from data import pipeline as data
from experiments.common.program_flags import read_flags
from stunet.errors import UserError, run_command
from stunet.model import load
from stunet.schema import from_dict
from stunet.training.config import TrainConfig
from stunet.training.text_cache import write_text_states

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "the experiment's config file", flag_values=FLAGS
)


def main(argv: list[str]) -> None:
    """Reads the flags and fills the cache."""
    values = read_flags(FLAGS, argv, __doc__, _CONFIG)
    if values is None:
        raise UserError("--config=FILE is needed")
    config = from_dict(TrainConfig, values, "config")
    if not config.init_from:
        raise UserError("config.init_from names the model whose text encoder is used; it is empty")
    model = load(config.init_from)
    data_config = data.parse_config(config.data)
    data.prepare(data_config)
    path = data.text_states_path(data_config)
    write_text_states(path, data.captions(data_config), model)
    print(path)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.cache_text"))
