"""Runs processes that depend on one another, in parallel where possible."""

import subprocess
import time
from collections.abc import Callable, Mapping

from experiments.common.exit_codes import PREEMPTED
from stunet import signals


def run_in_parallel(
    needs: Mapping[str, str | None],
    start: Callable[[str], subprocess.Popen],
    max_parallel: int,
    end: float | None = None,
) -> int:
    """Runs processes until all have ended, one has failed, the time is over, or a signal arrives.

    In the latter three cases the running processes receive SIGTERM and are waited for.

    Args:
      needs: Name of each process -> name of the process that has to succeed before it starts, or
        None. If several can start, the first in this order does.
      start: Starts the process of a name.
      max_parallel: Number of processes that run at the same time.
      end: Time of `time.monotonic()` to stop at. None for no limit.

    Returns:
      0, the exit code of the process that failed (128 + N for signal N, as in a shell), or
      `PREEMPTED` after a signal or if the time is over.
    """
    waiting, succeeded, running = list(needs), {None}, {}
    try:
        while waiting or running:
            for name in [name for name in waiting if needs[name] in succeeded]:
                if len(running) < max_parallel:
                    waiting.remove(name)
                    running[name] = start(name)
            time.sleep(0.1)
            for name, process in list(running.items()):
                code = process.poll()
                if code:
                    return code if code > 0 else 128 - code
                if code == 0:
                    succeeded.add(name)
                    del running[name]
            if running and end is not None and time.monotonic() > end:
                return PREEMPTED
        return 0
    except KeyboardInterrupt:
        return PREEMPTED
    finally:
        if running:
            signals.defer()  # they save, which may take minutes
        for process in running.values():
            process.terminate()  # has no effect on processes that have ended
        for process in running.values():
            process.wait()
