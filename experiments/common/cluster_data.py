"""Prepares a dataset in a cluster of processes."""

import dataclasses
from collections.abc import Callable

from data import pipeline as data
from stunet.cluster import agree, is_first_process, run_on_first_process, share_text


def prepare_in_cluster(
    config: data.DataConfig, check: Callable[[str], None] = lambda fingerprint: None
) -> data.DataConfig:
    """Builds the dataset, unless it exists, on every disk that a process of the cluster sees.

    Processes that see the disk of process 0 need no source. All wait for each other, for days if
    necessary.

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
    named = dataclasses.replace(config, dataset=dataset) if dataset else config
    return agree(lambda: ready if is_first_process() else data.prepare(named))
