"""Training by several processes: the hosts of a TPU pod, or processes on CPUs.

All processes run the same program on arrays that are sharded over the devices of all. Process 0
alone writes what a run leaves besides its checkpoints, into a workdir that all processes see.
"""

import signal
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from stunet import signals
from stunet.errors import UserError
from stunet.weights.trees import Tree

_SHARED_BYTES = 1000


def join_cluster(cluster: str) -> None:
    """Connects this process to the others. Call it before any other use of JAX.

    Args:
      cluster: "auto" on a TPU pod or under Slurm or Open MPI, which assign process numbers;
        otherwise "HOST:PORT,COUNT,NUMBER": where process 0 listens, the number of processes, and
        this process's number from 0.

    Raises:
      UserError: `cluster` has neither form, or the other processes cannot be reached.
    """
    arguments = {} if cluster == "auto" else _parse_cluster(cluster)
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--cluster={cluster}: cannot join the other processes: {reason}"
        ) from error
    # JAX stops all processes after the same step if one of them gets SIGTERM.
    signals.forward_to(signal.SIGTERM)


def _parse_cluster(cluster: str) -> dict[str, str | int]:
    address, *numbers = cluster.split(",")
    if len(numbers) != 2 or not all(n.isdigit() for n in numbers) or ":" not in address:
        raise UserError(
            f"--cluster={cluster}: expected 'auto' or 'HOST:PORT,COUNT,NUMBER', such as "
            "'localhost:1234,2,0'"
        )
    count, number = map(int, numbers)
    if number >= count:
        raise UserError(
            f"--cluster={cluster}: process number {number}, expected 0 to {count - 1} for {count} "
            "processes"
        )
    return {"coordinator_address": address, "num_processes": count, "process_id": number}


def is_first_process() -> bool:
    """Whether this process writes files and prints."""
    return jax.process_index() == 0


def run_on_first_process(action: Callable[[], None]) -> None:
    """Runs an action on process 0 while the other processes wait.

    Raises:
      UserError: in all other processes if the action raised any error. Process 0 raises the error
        itself.
    """
    if jax.process_count() == 1:
        action()
        return
    error = None
    if is_first_process():
        try:
            action()
        except Exception as raised:  # raised below, once the other processes know of it
            error = raised
    if multihost_utils.broadcast_one_to_all(np.int32(error is not None)):
        raise error or UserError("process 0 of the cluster failed; see its error")


def share_text(text: str) -> str:
    """Returns process 0's text in all processes, which have to call this. Up to 1000 bytes."""
    if jax.process_count() == 1:
        return text
    content = text.encode()[:_SHARED_BYTES].ljust(_SHARED_BYTES, b"\0")
    shared = multihost_utils.broadcast_one_to_all(np.frombuffer(content, np.uint8))
    return np.asarray(shared).astype(np.uint8).tobytes().rstrip(b"\0").decode()


def all_processes_agree(ok: bool) -> bool:
    """Whether `ok` is true in all processes. All of them have to call it."""
    return ok if jax.process_count() == 1 else bool(multihost_utils.process_allgather(ok).all())


def signal_arrived(step: int) -> bool:
    """Whether a signal asked to stop, after a step.

    In a cluster all processes have to call this after every step, and it returns True in all of
    them after the same step, whichever process received the signal. JAX's preemption service
    coordinates this; it also reports maintenance of TPUs.
    """
    if jax.distributed.is_initialized():
        return multihost_utils.reached_preemption_sync_point(step)
    return signals.received() is not None


def gather_to_first_process(tree: Tree) -> Tree:
    """Copies sharded arrays to the memory of process 0; other processes return None per array.

    In a cluster every process holds one whole array at a time.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def gather(array: jax.Array) -> np.ndarray | None:
        array = multihost_utils.process_allgather(array, tiled=True)
        return array if is_first_process() else None

    return jax.tree.map(gather, tree)
