"""Computes the text encoder states of a dataset's captions.

    python -m experiments.cache_text --config=experiments/configs/tiny_t2v.py

The text encoder is the one that the config's field `text_encoder` names, otherwise that of
`init_from`. Training with `--config.data.text_states=True` then reads states instead of tokens and
never runs the text encoder. The states are stored in the dataset's folder, once per distinct
caption. All devices of the machine share the captions.

An interrupted run keeps its finished shards: run the same command again. On a TPU pod, start it on
every host with `--cluster=auto`. All hosts must see the dataset's folder, for example in a bucket
(gs://).
"""

import contextlib
import sys
from collections.abc import Iterator

import jax
from absl import flags
from ml_collections import config_flags

from data import pipeline as data
from experiments.common.cluster_data import prepare_in_cluster
from experiments.common.program_flags import read_flags
from stunet.cluster import (
    all_processes_agree,
    end_on_signals,
    is_first_process,
    join_cluster,
    run_on_first_process,
)
from stunet.compiling import prepare_compiler
from stunet.errors import UserError, run_command, writing
from stunet.model import parse_text_encoder
from stunet.paths import AnyPath
from stunet.text_states import write_text_states
from stunet.training.config import TrainConfig, parse_train_config
from stunet.training.stages import Stage
from stunet.training.text_cache import encoder_identity, make_local_encoder
from stunet.training.workdir.claim import claim_folder
from stunet.weights.find_model import find_model_folder
from stunet.weights.model_folder import StoredTextEncoder, open_text_encoder, text_encoder_digest

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


def cache_text_states(config: TrainConfig) -> AnyPath:
    """Computes the states of all distinct captions of a run's data, together with other processes.

    Returns:
      The folder of the states.

    Raises:
      UserError: The config names no text encoder, the dataset cannot be prepared, another process
        writes the same states, or the disk is full or read-only. Finished shards are kept.
    """
    encoder, source = _open_encoder(config.stage)
    t5, tokenizer = parse_text_encoder(encoder.config, encoder.tokenizer, source)
    config_data = prepare_in_cluster(config.data)
    folder, captions = data.text_states_path(config_data), data.captions(config_data)
    if is_first_process():
        print(f"{len(captions)} captions, {len(set(captions))} distinct", file=sys.stderr)
        for warning in data.caption_warnings(config_data, tokenizer):
            print(warning, file=sys.stderr)
    with contextlib.ExitStack() as stack:
        run_on_first_process(lambda: stack.enter_context(_claim(folder)))
        write_text_states(
            folder,
            captions,
            make_local_encoder(t5, tokenizer, encoder.params),
            encoder_identity(text_encoder_digest(encoder.params), tokenizer),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            all_agree=all_processes_agree,
        )
    return folder


def _open_encoder(stage: Stage) -> tuple[StoredTextEncoder, AnyPath]:
    """Opens the frozen text encoder of a stage; also returns its folder."""
    field = "init_from" if stage.text_encoder is None else "text_encoder"
    name = getattr(stage, field)
    if stage.trains_text_encoder or not name:
        raise UserError(
            "config.init_from: empty, expected the model with the text encoder (or a text encoder "
            "folder in config.text_encoder)"
        )
    folder = find_model_folder(name)
    try:
        return open_text_encoder(folder), folder
    except UserError as error:
        raise UserError(f"config.{field}: {error}") from error


@contextlib.contextmanager
def _claim(folder: AnyPath) -> Iterator[None]:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: not a folder, expected the folder of text states, or none")
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
        end_on_signals()
    prepare_compiler()
    folder = cache_text_states(parse_train_config(values, data.parse_config))
    if is_first_process():
        print(folder)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv), "experiments.cache_text"))
