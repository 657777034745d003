"""Processes of which some need others to have ended, run as soon and as many as can be."""

import subprocess
import time
from collections.abc import Callable, Mapping

from experiments.common.exit_codes import PREEMPTED


def run_side_by_side(
    needs: Mapping[str, str | None],
    start: Callable[[str], subprocess.Popen],
    at_once: int,
    end: float | None = None,
) -> int:
    """Runs all to their end, or until one's failure or the time `end`.

    The others are told to stop then (SIGTERM) and waited for.

    Args:
      needs: each name with that of the one which has to have succeeded before it, if any; the
        earlier of two that could start does.
      start: starts the one of this name.
      at_once: how many run side by side.
      end: by `time.monotonic()`.

    Returns:
      0, the exit code of the one that failed, or `PREEMPTED`.
    """
    waiting, succeeded, running = list(needs), {None}, {}
    try:
        while waiting or running:
            for name in [name for name in waiting if needs[name] in succeeded]:
                if len(running) < at_once:
                    waiting.remove(name)
                    running[name] = start(name)
            time.sleep(0.1)
            for name, process in list(running.items()):
                code = process.poll()
                if code:
                    return code if code > 0 else 128 - code  # killed, as a shell counts it
                if code == 0:
                    succeeded.add(name)
                    del running[name]
            if running and end is not None and time.monotonic() > end:
                return PREEMPTED
        return 0
    except KeyboardInterrupt:  # which the processes have heard too
        for process in running.values():
            process.wait()
        raise
    finally:
        for process in running.values():
            process.terminate()  # nothing happens to one that has ended
        for process in running.values():
            process.wait()
