"""Computes the text encoder states of a dataset's captions, with the text encoder of `init_from`.

    python -m experiments.cache_text --config=experiments/configs/tiny_t2v.py

Training with `--config.data.text_states=True` then reads states instead of tokens and never runs
the text encoder. The states are stored in the dataset's folder, once per distinct caption. All
devices of the machine share the captions.

An interrupted run keeps its finished shards: run the same command again. On a TPU pod, start it on
every host with `--cluster=auto`. All hosts must see the dataset's folder.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from data import pipeline as data
from experiments.common.cluster_data import prepare_in_cluster
from experiments.common.program_flags import read_flags
from stunet.compiling import prepare_compiler
from stunet.errors import UserError, run_command, writing
from stunet.model import model_from_folder
from stunet.text_states import write_text_states
from stunet.training.claim import claim_folder
from stunet.training.cluster import (
    all_processes_agree,
    is_first_process,
    join_cluster,
    run_on_first_process,
)
from stunet.training.config import TrainConfig, parse_train_config
from stunet.training.text_cache import encoder_identity, make_local_encoder
from stunet.weights.model_folder import find_model_folder, open_model_folder

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "read this config file", flag_values=FLAGS
)
_CLUSTER = flags.DEFINE_string(
    "cluster",
    None,
    "compute together with other processes: 'auto' on a TPU pod, else 'HOST:PORT,COUNT,NUMBER'",
    flag_values=FLAGS,
)


def cache_text_states(config: TrainConfig) -> Path:
    """Computes the states of all distinct captions of a run's data, together with other processes.

    Returns:
      The folder of the states.

    Raises:
      UserError: `init_from` has no text encoder, the dataset cannot be prepared, another process
        writes the same states, or the disk is full or read-only. Finished shards are kept.
    """
    if not config.stage.init_from:
        raise UserError("config.init_from: empty, expected the model with the text encoder")
    source = find_model_folder(config.stage.init_from)
    # Lazy: only the text encoder's parameters are read, and their digest is stored.
    model = model_from_folder(open_model_folder(source), source)
    if model.text_encoder is None:
        raise UserError(
            f"config.init_from: {source} has no text encoder; add one with "
            f"`stunet import-t5 T5_FOLDER {source}`"
        )
    config_data = prepare_in_cluster(config.data)
    folder, captions = data.text_states_path(config_data), data.captions(config_data)
    if is_first_process():
        print(f"{len(captions)} captions, {len(set(captions))} distinct", file=sys.stderr)
        for warning in data.caption_warnings(config_data, model.tokenizer):
            print(warning, file=sys.stderr)
    with contextlib.ExitStack() as stack:
        run_on_first_process(lambda: stack.enter_context(_claim(folder)))
        write_text_states(
            folder,
            captions,
            make_local_encoder(model),
            encoder_identity(model),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            all_agree=all_processes_agree,
        )
    return folder


@contextlib.contextmanager
def _claim(folder: Path) -> Iterator[None]:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with claim_folder(folder):
        yield


def main(argv: list[str]) -> None:
    """Parses the flags and writes the states."""
    values = read_flags(FLAGS, argv, __doc__, _CONFIG)
    if values is None:
        raise UserError("--config=FILE: missing")
    if _CLUSTER.value:
        join_cluster(_CLUSTER.value)
        # Signals are passed on as SIGTERM, which JAX only records (for a training step to read).
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    prepare_compiler()
    folder = cache_text_states(parse_train_config(values, data.parse_config))
    if is_first_process():
        print(folder)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.cache_text"))
