"""Several processes that train as one: the hosts of a TPU pod, or processes on CPUs.

All of them run the same program on arrays that lie over the devices of all; the first one alone
writes what the run leaves beside its checkpoints, in a workdir that all of them see.
"""

import signal
import threading
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from stunet.errors import UserError
from stunet.weights.trees import Tree


def join_cluster(place: str) -> None:
    """Joins the other processes; before anything else that JAX does.

    Args:
      place: "auto" on a TPU pod, or under Slurm or Open MPI, which say who is who; elsewhere
        "HOST:PORT,COUNT,NUMBER": where the first process listens, how many there are, and which
        one this is, from 0.

    Raises:
      UserError: `place` is neither, or the others did not appear.
    """
    if place == "auto":
        arguments = {}
    else:
        address, *numbers = place.split(",")
        if len(numbers) != 2 or not all(n.isdigit() for n in numbers) or ":" not in address:
            raise UserError(
                f"--cluster={place}: expected 'auto' or 'HOST:PORT,COUNT,NUMBER', such as "
                "'localhost:1234,2,0'"
            )
        count, number = map(int, numbers)
        if number >= count:
            raise UserError(f"--cluster={place}: of {count} processes the last is {count - 1}")
        arguments = {
            "coordinator_address": address,
            "num_processes": count,
            "process_id": number,
        }
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--cluster={place}: cannot join the other processes: {reason}") from error


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def first_alone(action: Callable[[], None]) -> None:
    """The first process acts, and the others wait until it has.

    Raises:
      UserError: the action did, or in the other processes: it raised anything.
    """
    if jax.process_count() == 1:
        action()
        return
    error = None
    if is_first():
        try:
            action()
        except Exception as raised:  # told to the others before it goes on its way
            error = raised
    if multihost_utils.broadcast_one_to_all(np.int32(error is not None)):
        raise error or UserError("the first process of the cluster failed; it says why")


def on_every_process(ok: bool) -> bool:
    """Whether `ok` is true of all processes; each has to ask."""
    return ok if jax.process_count() == 1 else bool(multihost_utils.process_allgather(ok).all())


def watch_for_sigterm() -> Callable[[int], bool]:
    """From now on SIGTERM stops nothing; returns whether to stop after a step.

    Every process has to ask after every step. The answer is yes in all of them after the same one,
    whichever was told; JAX's preemption service, which agrees on it, also knows a TPU's
    maintenance notices.
    """
    if jax.distributed.is_initialized():
        return multihost_utils.reached_preemption_sync_point
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    return lambda step: told.is_set()


def gathered(tree: Tree) -> Tree:
    """The arrays whole, in the first process; one at a time passes through the others."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def whole(array: jax.Array) -> np.ndarray | None:
        array = multihost_utils.process_allgather(array, tiled=True)
        return array if is_first() else None

    return jax.tree.map(whole, tree)
