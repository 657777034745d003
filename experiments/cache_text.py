"""Computes the text encoder states of a dataset's captions, with the text encoder of `init_from`.

    python -m experiments.cache_text --config=experiments/configs/tiny_t2v.py

Training with `--config.data.text_states=True` then reads states instead of tokens and never runs
the text encoder. The states are stored next to the dataset's records.
"""

import functools
import sys

from absl import flags
from ml_collections import config_flags

from data import pipeline as data
from experiments.common.program_flags import read_flags
from stunet.engine.sampling import encode_text
from stunet.errors import UserError, run_command
from stunet.model import load
from stunet.training.config import parse_train_config
from stunet.training.text_cache import write_text_states

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "read this config file", flag_values=FLAGS
)


def main(argv: list[str]) -> None:
    """Parses the flags and writes the states."""
    values = read_flags(FLAGS, argv, __doc__, _CONFIG)
    if values is None:
        raise UserError("--config=FILE: missing")
    config = parse_train_config(values, data.parse_config)
    if not config.stage.init_from:
        raise UserError("config.init_from: empty, expected the model with the text encoder")
    model = load(config.stage.init_from)
    data.prepare(config.data)
    path = data.text_states_path(config.data)
    captions = data.captions(config.data)
    for warning in data.caption_warnings(config.data, model.tokenizer):
        print(warning, file=sys.stderr)
    write_text_states(path, captions, model, functools.partial(encode_text, model))
    print(path)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.cache_text"))
