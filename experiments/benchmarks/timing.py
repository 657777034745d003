"""Timing: work held ready in processes of its own, run in turns, reported as one table.

Work to be compared lives in processes of its own, each pinned to a number of CPUs before its
framework starts, and all take turns: what else the machine does then falls on every side.
"""

import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

Run = Callable[[], object]  # does the work once and waits for it


@dataclass
class Timing:
    """Runs of one piece of work.

    Attributes:
      seconds: of each run.
      cpu_seconds: processor time of each run, over all threads.
      first_seconds: of set-up and the first run, compiling included.
      peak_bytes: most memory the process held during a run.
      idle_bytes: what it held with its framework loaded, before anything was built.
      info: what the set-up reported.
    """

    seconds: list[float]
    cpu_seconds: list[float]
    first_seconds: float
    peak_bytes: int
    idle_bytes: int
    info: dict[str, Any]

    @property
    def best(self) -> float:
        """The least disturbed run."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """The middle run."""
        return statistics.median(self.seconds)

    @property
    def cpus(self) -> float:
        """How many processors were at work: processor time over time."""
        return sum(self.cpu_seconds) / sum(self.seconds)

    def as_json(self) -> dict[str, Any]:
        """Every figure, for a JSON file."""
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
    """A process that holds one piece of work.

    `setup(*args)` runs in the process: it imports its framework, notes `resident_bytes()`, builds,
    and returns (the work, those bytes, what to report). The process is pinned to `threads` CPUs
    before that, and told so in OMP_NUM_THREADS.
    """

    def __init__(self, threads: int, setup: Callable[..., tuple[Run, int, dict]], *args: Any):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads, setup, args))
        self._process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self._seconds, self._cpu_seconds = [], []
        self._first_seconds, self._idle_bytes, self._info = self._receive()

    def run(self) -> None:
        """Does the work once more."""
        self._connection.send("run")
        seconds, cpu_seconds = self._receive()
        self._seconds.append(seconds)
        self._cpu_seconds.append(cpu_seconds)

    def finish(self) -> Timing:
        """Measures memory in one last run, and ends the process."""
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
            raise SystemExit("a benchmark's process failed; its error is above") from None


def take_turns(workers: Sequence[Worker], repeats: int) -> list[Timing]:
    """Runs each worker `repeats` times, in turns, and ends them."""
    for _ in range(repeats):
        for worker in workers:
            worker.run()
    return [worker.finish() for worker in workers]


def time_here(run: Run, repeats: int) -> tuple[float, float]:
    """Best and median seconds of `run` in this process; the first run is not counted."""
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
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the others want of the GPU too
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
    """Memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _peak_bytes(run: Run) -> int:
    """Most memory resident while `run` works, looked at every few milliseconds."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # glibc's: gives back what compiling has freed
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
    """For a CPU 1 and all that this process may use; beside another device all."""
    every = len(os.sched_getaffinity(0))
    return sorted({1, every}) if device == "cpu" else [every]


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints an aligned Markdown table; floats with three significant digits."""
    cells = [[_text(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for number, row in enumerate(cells):
        print("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (w + 2) for w in widths) + "|")


def _text(cell: Any) -> str:
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def write_json(path: str, result: dict[str, Any]) -> None:
    """Writes a result with the machine and the day it is from."""
    machine = {"machine": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"date": str(date.today()), **machine, **result}, indent=1)
    Path(path).write_text(text + "\n")
    print(f"written: {path}")
