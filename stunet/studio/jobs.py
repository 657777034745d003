"""A queue that runs one job at a time, and the jobs' progress."""

import collections
import dataclasses
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from stunet.engine.request import Progress
from stunet.errors import UserError

INTERNAL_ERROR = "internal error, see the studio's terminal for the traceback"


class Cancelled(Exception):  # noqa: N818  (not an error)
    """Raised inside a cancelled job, and by `Job.result`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Status:
    """Status of a job, for display.

    Attributes:
      stage: Current activity, in words.
      done: Steps done.
      total: Steps of the stage. 0 if they cannot be counted.
      seconds: Time since the end of the stage's first step, which includes compilation.
      frames: Preview of the video, `[T, H, W, 3]` in [-1, 1]. None if there is no estimate yet.
      frame_stride: Frames of the video per frame of the preview.
      warnings: Warnings about the job, from the time when its inputs have been read.
    """

    stage: str
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    frames: np.ndarray | None = None
    frame_stride: int = 1
    warnings: tuple[str, ...] = ()


STOPPING = Status("stopping after this step")
Report = Callable[[Status], None]  # raises Cancelled
Work = Callable[[Report], Any]


class Job:
    """A unit of work in a `Queue`. Created by `Queue.add`."""

    def __init__(self, work: Work, owner: tuple[str, ...], queue: "Queue"):
        self.owner = owner
        self._work, self._queue = work, queue
        self._status = Status("waiting")
        self._cancelled = self._finished = False
        self._result: Any = None
        self._error: BaseException | None = None

    def updates(self) -> Iterator[Status]:
        """Yields the status whenever it changes, until the job ends.

        The status of a waiting job is its position in the queue.
        """
        previous = None
        while True:
            with self._queue.changed:
                self._queue.changed.wait_for(lambda: self._finished or self._state() != previous)  # noqa: B023
                if self._finished:
                    return
                previous = ahead, status = self._state()
            yield Status(f"waiting: {ahead} ahead") if ahead else status

    def result(self) -> Any:
        """Returns the result of the work. Call it after `updates` has ended.

        Raises:
          Cancelled: The job was cancelled.
          UserError: Raised by the work, or replaces any other exception that it raised.
        """
        if self._error is not None:
            raise self._error
        return self._result

    def cancel(self) -> None:
        """Removes the job from the queue, or stops it at its next report. Ended jobs ignore it."""
        with self._queue.changed:
            self._cancelled = True
            self._queue.changed.notify_all()
            if self._queue._withdraw(self):
                self._end(error=Cancelled())

    def _state(self) -> tuple[int, Status]:
        return self._queue._ahead(self), STOPPING if self._cancelled else self._status

    def _report(self, status: Status) -> None:
        with self._queue.changed:
            if self._cancelled:
                raise Cancelled
            self._status = status
            self._queue.changed.notify_all()

    def _run(self) -> None:
        try:
            self._report(Status("starting"))
            result, error = self._work(self._report), None
        except (Cancelled, UserError) as raised:
            result, error = None, raised
        except Exception:
            traceback.print_exc()
            result, error = None, UserError(INTERNAL_ERROR)
        with self._queue.changed:
            self._end(result, error)

    def _end(self, result: Any = None, error: BaseException | None = None) -> None:
        self._result, self._error, self._finished = result, error, True
        self._queue.changed.notify_all()


class Queue:
    """Runs jobs one after the other, in one thread.

    Args:
      limit: Maximum number of unfinished jobs.
    """

    def __init__(self, limit: int = 16):
        self.limit = limit
        self.changed = threading.Condition(threading.RLock())
        self._waiting: collections.deque[Job] = collections.deque()
        self._running: Job | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="studio", daemon=True)
        self._thread.start()

    def add(self, work: Work, *owner: str) -> Job:
        """Appends a job.

        Args:
          work: Called with a `Report`, which it should call often. Returns the job's result.
          *owner: Identifies the job for `cancel`, from general to specific.

        Raises:
          UserError: The queue is full.
        """
        job = Job(work, owner, self)
        with self.changed:
            unfinished = len(self._waiting) + (self._running is not None)
            if unfinished >= self.limit:
                raise UserError(
                    f"queue: full ({unfinished} jobs), expected fewer than {self.limit}; "
                    "try again later"
                )
            self._waiting.append(job)
            self.changed.notify_all()
        return job

    def cancel(self, *owner: str) -> None:
        """Cancels the jobs whose owner begins with these words. Without words, cancels all."""
        with self.changed:
            for job in [*self._waiting, *([self._running] if self._running else [])]:
                if job.owner[: len(owner)] == owner:
                    job.cancel()

    def close(self, timeout: float = 10.0) -> bool:
        """Cancels all jobs and waits up to `timeout` seconds for the running one to stop.

        Returns:
          Whether it stopped.
        """
        with self.changed:
            self._closed = True
            self.cancel()
            self.changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        while True:
            with self.changed:
                while not self._waiting and not self._closed:
                    self.changed.wait()
                if self._closed:
                    return
                self._running = self._waiting.popleft()
                self.changed.notify_all()
            self._running._run()
            with self.changed:
                self._running = None
                self.changed.notify_all()

    def _ahead(self, job: Job) -> int:
        """Returns the number of jobs before this one; 0 if it has started or ended."""
        if job not in self._waiting:
            return 0
        return self._waiting.index(job) + (self._running is not None)

    def _withdraw(self, job: Job) -> bool:
        """Removes a waiting job. Returns False if it is not waiting."""
        if job not in self._waiting:
            return False
        self._waiting.remove(job)
        self.changed.notify_all()
        return True


class ProgressAdapter:
    """Turns the engine's progress reports into a job's.

    Args:
      report: Receives the job's status.
      interval: Seconds between two previews, at least.
      max_frames: Maximum number of frames of a preview.
      max_side: Maximum height and width of a preview, in pixels.
    """

    def __init__(
        self,
        report: Report,
        interval: float = 0.4,
        max_frames: int = 32,
        max_side: int = 128,
    ):
        self._report, self._interval = report, interval
        self._max_frames, self._max_side = max_frames, max_side
        self._first_step_time = self._preview_time = 0.0
        self._preview: tuple[np.ndarray | None, int] = (None, 1)
        self._warnings: tuple[str, ...] = ()

    def __call__(self, progress: Progress) -> None:
        """Reports one `stunet.engine.request.Progress`."""
        if progress.stage == "reading":
            self._warnings = progress.warnings
            self._report(Status("reading", warnings=self._warnings))
            return
        if progress.done == 0:
            stage = f"{progress.stage}: compiling, which takes longer the first time"
            self._first_step_time = 0.0
            self._report(Status(stage, 0, progress.total, 0.0, *self._preview, self._warnings))
            return
        now = time.monotonic()
        self._first_step_time = self._first_step_time or now
        last = progress.done == progress.total
        if last or now - self._preview_time >= self._interval:
            self._preview, self._preview_time = self._thin_out(progress.estimate), now
        seconds = now - self._first_step_time
        done, total = progress.done, progress.total
        self._report(Status(progress.stage, done, total, seconds, *self._preview, self._warnings))

    def _thin_out(self, estimate: jax.Array) -> tuple[np.ndarray, int]:
        """Subsamples the first video on its device: copying all of a large clip is slow."""
        _, num_frames, height, width, _ = estimate.shape
        frame_stride = -(-num_frames // self._max_frames)
        stride = -(-max(height, width) // self._max_side)
        return np.asarray(estimate[0, ::frame_stride, ::stride, ::stride]), frame_stride
