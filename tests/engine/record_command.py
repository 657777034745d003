"""Runs the `stunet` command, and saves the videos and how this process's devices hold parameters.

python -m tests.engine.record_command OUT.npz ARGUMENT...
"""

import sys
from unittest import mock

import jax
import numpy as np

from stunet import cli
from stunet.engine import cascade
from stunet.engine import run as runs
from stunet.weights.trees import flatten


def main(out: str, *arguments: str) -> int:
    """Returns the command's exit code."""
    results, load_models, run = {}, cascade.load_models, runs.run

    def recording_load(*arguments, **keywords):
        models = load_models(*arguments, **keywords)
        loaded = (*models.chain, *([] if models.style is None else [models.style]))
        for index, model in enumerate(loaded):
            for path, leaf in flatten(model.params).items():
                shards = [shard.data.size for shard in leaf.addressable_shards]
                results[f"{index}/{path}"] = np.array([leaf.size, *shards])
        return models

    def recording_run(*arguments):
        result = run(*arguments)
        results["videos"], results["processes"] = result.videos, jax.process_count()
        return result

    with (
        mock.patch.object(cascade, "load_models", recording_load),
        mock.patch.object(runs, "run", recording_run),
    ):
        code = cli.main(arguments)
    np.savez(out, **results)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
