"""Timing of functions that run in separate worker processes and take turns.

Each function to compare runs in a process of its own, pinned to a number of CPUs before its
framework starts. The processes take turns, so that other load on the machine affects all of them
equally.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Run = Callable[[], object]  # does the work once and waits for its result


@dataclass
class Timing:
    """Measurements of one worker.

    Attributes:
      seconds: Wall-clock seconds of each run.
      cpu_seconds: Processor seconds of each run, summed over all threads.
      first_seconds: Wall-clock seconds of set-up and the first run, compilation included.
      peak_bytes: Largest resident memory during a run.
      idle_bytes: Resident memory after the framework was loaded, before anything was built.
      info: Values that the set-up function reported.
    """

    seconds: list[float]
    cpu_seconds: list[float]
    first_seconds: float
    peak_bytes: int
    idle_bytes: int
    info: dict[str, Any]

    @property
    def best(self) -> float:
        """Seconds of the fastest run."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """Median seconds of the runs."""
        return statistics.median(self.seconds)

    @property
    def cpus(self) -> float:
        """Mean number of busy CPUs: processor seconds over wall-clock seconds."""
        return sum(self.cpu_seconds) / sum(self.seconds)

    def as_json(self) -> dict[str, Any]:
        """Returns all figures as a JSON object."""
        return {
            **self.info,
            "best_s": self.best,
            "median_s": self.median,
            "runs": len(self.seconds),
            "cpus": self.cpus,
            "first_s": self.first_seconds,
            "peak_bytes": self.peak_bytes,
            "idle_bytes": self.idle_bytes,
        }


class Worker:
    """A process that repeats one piece of work on request.

    Args:
      threads: Number of CPUs that the process is pinned to, also set as OMP_NUM_THREADS.
      setup: Function that runs in the process after pinning. It imports its framework, records
        `resident_bytes()`, builds the work, and returns (run, those bytes, values to report).
      *args: Arguments of `setup`.
    """

    def __init__(self, threads: int, setup: Callable[..., tuple[Run, int, dict]], *args: Any):
        context = multiprocessing.get_context("spawn")
        self._connection, child_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(child_end, threads, setup, args))
        self._process.start()
        child_end.close()  # `recv` then raises EOFError when the process ends
        self._seconds, self._cpu_seconds = [], []
        self._first_seconds, self._idle_bytes, self._info = self._receive()

    def run(self) -> None:
        """Runs the work once and records its time."""
        self._connection.send("run")
        seconds, cpu_seconds = self._receive()
        self._seconds.append(seconds)
        self._cpu_seconds.append(cpu_seconds)

    def finish(self) -> Timing:
        """Measures peak memory in one last run, ends the process and returns all measurements."""
        self._connection.send("finish")
        peak = self._receive()
        self._process.join()
        return Timing(
            self._seconds,
            self._cpu_seconds,
            self._first_seconds,
            peak,
            self._idle_bytes,
            self._info,
        )

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError:
            raise SystemExit("a benchmark's worker process failed; its error is above") from None


def take_turns(workers: Sequence[Worker], repeats: int) -> list[Timing]:
    """Runs the workers `repeats` times in turns, then ends them and returns their measurements."""
    for _ in range(repeats):
        for worker in workers:
            worker.run()
    return [worker.finish() for worker in workers]


def time_here(run: Run, repeats: int) -> tuple[float, float]:
    """Returns the best and the median seconds of `run` in this process, after one warm-up run."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds), statistics.median(seconds)


def _serve(connection: Any, threads: int, setup: Callable, args: tuple) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # all workers share the GPU's memory
    start = time.perf_counter()
    run, idle, info = setup(*args)
    run()
    connection.send((time.perf_counter() - start, idle, info))
    while connection.recv() == "run":
        start, cpu = time.perf_counter(), time.process_time()
        run()
        connection.send((time.perf_counter() - start, time.process_time() - cpu))
    connection.send(_peak_bytes(run))


def resident_bytes() -> int:
    """Returns the resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _peak_bytes(run: Run) -> int:
    """Returns the largest resident memory during `run`, sampled every 3 ms."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # glibc only: returns freed memory to the system
        ctypes.CDLL(None).malloc_trim(0)
    peak, done = resident_bytes(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.003):
            peak = max(peak, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return peak


def thread_counts(device: str) -> list[int]:
    """Returns the CPU counts to measure: 1 and all available ones for "cpu", else only all."""
    available = len(os.sched_getaffinity(0))
    return sorted({1, available}) if device == "cpu" else [available]
