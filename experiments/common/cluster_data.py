"""Prepares a dataset in a cluster of processes."""

import dataclasses
from collections.abc import Callable

from data import pipeline as data
from stunet.training.cluster import is_first_process, run_on_first_process, share_text


def prepare_in_cluster(
    config: data.DataConfig, check: Callable[[str], None] = lambda fingerprint: None
) -> data.DataConfig:
    """Builds the dataset, unless it exists, on every disk that a process of the cluster sees.

    Processes that see the disk of process 0 need no source.

    Args:
      config: The dataset.
      check: Called on process 0 with the dataset's fingerprint before anything is built; may raise.

    Returns:
      A config that identifies the built dataset.

    Raises:
      UserError: See `data.pipeline.prepare`.
    """
    ready = config

    def prepare() -> None:
        nonlocal ready
        ready = data.prepare(config, check=check)

    run_on_first_process(prepare)
    dataset = share_text(getattr(ready, "dataset", None) or "")
    if is_first_process():
        return ready
    return data.prepare(dataclasses.replace(config, dataset=dataset) if dataset else config)
