"""Several processes that run one program: the hosts of a TPU pod, or processes on CPUs.

Arrays are sharded over the devices of all processes. Process 0 alone writes files, except
checkpoints, and prints.

Processes wait for each other through JAX's coordination service, not in a device collective, which
would time out if another process builds a dataset for hours.
"""

import itertools
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # no public function waits without a device collective
from jax.experimental import multihost_utils

from stunet import signals
from stunet.errors import UserError

JOIN_S = 600  # hosts start minutes apart: each pulls an image or installs packages
# A process without heartbeats for this long counts as dead, and all others end. JAX's default of
# 100 s is too short for hosts that compile: a step of IF-I-XL compiles for up to 512 s.
HEARTBEAT_S = int(os.environ.get("STUNET_HEARTBEAT_S", "900"))
_LONGEST_WAIT_S = 7 * 24 * 3600

_calls = itertools.count()  # all processes make the same calls in the same order

Result = TypeVar("Result")


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
    errors: list[Exception] = []

    def join() -> None:
        try:
            jax.distributed.initialize(
                **arguments,
                # JAX aborts the process after its own timeout.
                initialization_timeout=JOIN_S + 60,
                heartbeat_timeout_seconds=HEARTBEAT_S,
            )
        except Exception as error:  # reported below, in the main thread
            errors.append(error)

    joining = threading.Thread(target=join, name="join", daemon=True)
    joining.start()
    joining.join(JOIN_S)
    if joining.is_alive():
        raise UserError(f"--cluster={cluster}: {_missing_process()}")
    for error in errors:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"--cluster={cluster}: cannot join the other processes: {reason}"
        ) from error
    # JAX stops all processes after the same step if one of them gets SIGTERM.
    signals.forward_to(signal.SIGTERM)


def _missing_process() -> str:
    """Returns why the cluster did not form within `JOIN_S`."""
    state = distributed.global_state
    if state.coordinator_address is None:
        return f"no address of process 0 found within {JOIN_S} s, expected a name that resolves"
    host, _, port = state.coordinator_address.rpartition(":")
    if state.process_id:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            return (
                f"port {port} of {host} is closed or unreachable for {JOIN_S} s ({error}), "
                "expected process 0 to listen there and no firewall to block it "
                "(JAX_COORDINATOR_PORT sets another port)"
            )
    return (
        f"process {state.process_id} waited {JOIN_S} s for the other processes, expected "
        f"{state.num_processes} that reach port {port} of {host}: one on every host of every slice"
    )


def end_on_signals() -> None:
    """Lets signals end this process after `join_cluster`, in programs without `signal_arrived`."""
    # Signals are passed on as SIGTERM, which JAX only records.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _parse_cluster(cluster: str) -> dict[str, str | int]:
    address, *numbers = cluster.split(",")
    port = address.rpartition(":")[2] if ":" in address else ""
    if len(numbers) != 2 or not all(_is_number(n) for n in [*numbers, port]):
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
    if int(port) > 65535:
        raise UserError(f"--cluster={cluster}: port {port}, expected at most 65535")
    if number == 0:
        # JAX's server sometimes crashes if it cannot listen.
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise UserError(
                f"--cluster={cluster}: port {port} cannot be opened ({error}), expected a free port"
            ) from error
    return {"coordinator_address": address, "num_processes": count, "process_id": number}


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 10  # Python limits the digits that it converts


def is_first_process() -> bool:
    """Whether this process writes files and prints."""
    return jax.process_index() == 0


def run_on_first_process(action: Callable[[], None]) -> None:
    """Runs an action on process 0 while the other processes wait, for days if necessary.

    Raises:
      UserError: In all other processes if the action raised any error. Process 0 raises the error
        itself.
    """
    if jax.process_count() == 1:
        action()
        return
    _, error, failures = _run(action if is_first_process() else lambda: None)
    if error is not None:
        raise error
    if failures[0]:
        raise UserError(f"process 0 of the cluster: {failures[0]}")


def share_text(text: str) -> str:
    """Returns process 0's text in all processes, which have to call this."""
    return gather_texts(text if is_first_process() else "")[0]


def agree(action: Callable[[], Result]) -> Result:
    """Runs an action in all processes, waits for all of them, and returns its result.

    Raises:
      UserError: In all processes, with one message, if the action raised any error in one of them.
        That process raises errors of other types as they are.
    """
    if jax.process_count() == 1:
        return action()
    result, error, failures = _run(action)
    if error is not None and not isinstance(error, UserError):
        raise error
    for number, failure in enumerate(failures):
        if failure:
            raise UserError(f"process {number} of the cluster: {failure}")
    return result


def _run(action: Callable[[], Result]) -> tuple[Result | None, Exception | None, list[str]]:
    """Runs an action; returns its result, its error, and the errors of all processes as lines."""
    result, error, failure = None, None, ""
    try:
        result = action()
    except Exception as raised:
        error = raised
        name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        failure = f"{name}{error}".partition("\n")[0] or "failed"
    return result, error, gather_texts(failure)


def check_equal(read_values: Callable[[], Mapping[str, str]]) -> None:
    """Checks that all processes have the same values.

    Args:
      read_values: Returns short texts by name, such as digests of files. Not called for one
        process.

    Raises:
      UserError: In all processes, if `read_values` raises it in one of them, or if a value differs;
        names the first one and two processes.
    """
    if jax.process_count() == 1:
        return
    first, *others = map(json.loads, gather_texts(json.dumps(agree(read_values))))
    for number, other in enumerate(others, start=1):
        for name in {**first, **other}:
            if first.get(name) != other.get(name):
                raise UserError(
                    f"{name}: {other.get(name)} in process {number} of the cluster, expected "
                    f"{first.get(name)} as in process 0"
                )


def gather_texts(text: str) -> list[str]:
    """Returns the texts of all processes, which have to call this; waits for days if necessary."""
    if jax.process_count() == 1:
        return [text]
    client, number = _client(), next(_calls)
    call = f"stunet/{number}"
    client.key_value_set(f"{call}/{jax.process_index()}", text)
    client.wait_at_barrier(call, 1000 * _LONGEST_WAIT_S)
    if is_first_process():
        client.key_value_delete(f"stunet/{number - 1}")  # all processes have read those
    texts = {int(key.rpartition("/")[2]): value for key, value in client.key_value_dir_get(call)}
    return [texts[number] for number in range(jax.process_count())]


def _client() -> Any:
    """Returns the client of JAX's coordination service, which ends the process if another dies."""
    client = distributed.global_state.client
    if client is None:
        raise UserError(
            f"this host is one of {jax.process_count()}, expected --cluster=auto on all of them"
        )
    return client


def all_processes_agree(ok: bool) -> bool:
    """Whether `ok` is true in all processes. All of them have to call it."""
    return all(text == "True" for text in gather_texts(str(bool(ok))))


def signal_arrived(step: int) -> bool:
    """Whether a signal asked to stop, after a step.

    In a cluster all processes have to call this after every step, and it returns True in all of
    them after the same step, whichever process received the signal. JAX's preemption service
    coordinates this; it also reports maintenance of TPUs.
    """
    if jax.distributed.is_initialized():
        return multihost_utils.reached_preemption_sync_point(step)
    return signals.received() is not None


def leave_together() -> None:
    """Waits until all processes have called this, then ends the cluster.

    The processes wait for days if necessary. Afterwards each may compute on its own devices, or
    exit.
    """
    if jax.process_count() == 1:
        return
    gather_texts("")
    jax.distributed.shutdown()


def gather_to_first_process(tree: Any) -> Any:
    """Copies sharded arrays to the memory of process 0; other processes return None per array.

    In a cluster every process holds one whole array at a time.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def gather(array: jax.Array) -> np.ndarray | None:
        array = multihost_utils.process_allgather(array, tiled=True)
        return array if is_first_process() else None

    return jax.tree.map(gather, tree)
