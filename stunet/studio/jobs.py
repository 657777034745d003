"""One job at a time, in the order of coming; a cancelled one stops at its next report."""

import collections
import contextlib
import dataclasses
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from stunet.errors import UserError

FAILED = "this failed through no fault of yours; the studio's terminal says how"


class Cancelled(Exception):  # noqa: N818  (it is no error)
    """Raised inside a job that was cancelled, and to whoever waits for its result."""


@dataclasses.dataclass(frozen=True, eq=False)
class Progress:
    """How far a job is.

    Attributes:
      stage: what it does, in words.
      done: steps.
      total: steps of this stage; 0 where they cannot be counted.
      seconds: since the stage's first step ended, which takes the compiler's time too.
      frames: an estimate of the video, `[T, H, W, 3]` in [-1, 1], or None.
      thinned: the estimate is every so many frames of the video.
    """

    stage: str
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    frames: np.ndarray | None = None
    thinned: int = 1


STOPPING = Progress("stopping after this step")
Report = Callable[[Progress], None]  # raises Cancelled
Work = Callable[[Report], Any]


class Job:
    """Work in a `Queue`, which makes it."""

    def __init__(self, work: Work, owner: tuple[str, ...], queue: "Queue"):
        self.owner = owner
        self._work, self._queue = work, queue
        self._progress = Progress("waiting")
        self._cancelled = self._finished = False
        self._result: Any = None
        self._error: BaseException | None = None

    def updates(self) -> Iterator[Progress]:
        """Its progress whenever that changes, until it ends; while it waits, its place in line."""
        seen = None
        while True:
            with self._queue.changed:
                self._queue.changed.wait_for(lambda: self._finished or self._state() != seen)  # noqa: B023
                if self._finished:
                    return
                seen = ahead, progress = self._state()
            yield Progress(f"waiting: {ahead} ahead") if ahead else progress

    def result(self) -> Any:
        """What the work returned, once `updates` has ended.

        Raises:
          Cancelled: it was cancelled.
          UserError: of the work, or in place of anything else that it raised.
        """
        if self._error is not None:
            raise self._error
        return self._result

    def cancel(self) -> None:
        """Takes it out of the line, or stops it at its next report; nothing if it has ended."""
        with self._queue.changed:
            self._cancelled = True
            self._queue.changed.notify_all()
            if self._queue._withdraw(self):
                self._end(error=Cancelled())

    def _state(self) -> tuple[int, Progress]:
        return self._queue._ahead(self), STOPPING if self._cancelled else self._progress

    def _report(self, progress: Progress) -> None:
        with self._queue.changed:
            if self._cancelled:
                raise Cancelled
            self._progress = progress
            self._queue.changed.notify_all()

    def _run(self) -> None:
        try:
            self._report(Progress("starting"))
            result, error = self._work(self._report), None
        except (Cancelled, UserError) as raised:
            result, error = None, raised
        except Exception:
            traceback.print_exc()
            result, error = None, UserError(FAILED)
        with self._queue.changed:
            self._end(result, error)

    def _end(self, result: Any = None, error: BaseException | None = None) -> None:
        self._result, self._error, self._finished = result, error, True
        self._queue.changed.notify_all()


class Queue:
    """Jobs, worked on by one thread.

    Args:
      limit: jobs that may be unfinished at once.
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
        """Puts work at the end of the line.

        Args:
          work: is called with a `Report`, which it calls often; what it returns is the result.
          *owner: whose it is, for `cancel`.

        Raises:
          UserError: the line is full.
        """
        job = Job(work, owner, self)
        with self.changed:
            if len(self._waiting) + (self._running is not None) >= self.limit:
                raise UserError(f"{self.limit} jobs are waiting already; try again later")
            self._waiting.append(job)
            self.changed.notify_all()
        return job

    def cancel(self, *owner: str) -> None:
        """Cancels the jobs whose owner begins like this: without a word, all."""
        with self.changed:
            for job in [*self._waiting, *([self._running] if self._running else [])]:
                if job.owner[: len(owner)] == owner:
                    job.cancel()

    def close(self, patience: float = 10.0) -> bool:
        """Cancels all jobs and waits up to `patience` seconds for the one at work to stop; returns
        whether it did.
        """
        with self.changed:
            self._closed = True
            self.cancel()
            self.changed.notify_all()
        self._thread.join(patience)
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
        """Jobs that come before one; 0 when its turn has come."""
        if job not in self._waiting:
            return 0
        return self._waiting.index(job) + (self._running is not None)

    def _withdraw(self, job: Job) -> bool:
        """Takes a job out of the line; False if it is not in it."""
        if job not in self._waiting:
            return False
        self._waiting.remove(job)
        self.changed.notify_all()
        return True


class Watch:
    """Reports of a cascade: `pipeline.Progress`, which names the samplings in turn.

    Args:
      report: of the job.
      stages: a name for each sampling.
      every: seconds between two estimates of the video, at least.
      size: frames, and pixels of a side, that an estimate is thinned out to.
    """

    def __init__(
        self,
        report: Report,
        stages: Sequence[str],
        every: float = 0.4,
        size: tuple[int, int] = (32, 128),
    ):
        self._report, self._stages, self._every, self._size = report, iter(stages), every, size
        self._shown, self._estimate = 0.0, (None, 1)

    @contextlib.contextmanager
    def __call__(self, windows: Any) -> Iterator[Callable[[int, int, Any], None]]:
        """The next sampling's `on_chunk`."""
        stage, first_ended = next(self._stages), None

        def on_chunk(done: int, total: int, x0: Any) -> None:
            nonlocal first_ended
            now = time.monotonic()
            if done and first_ended is None:
                first_ended = now
            seconds = now - (first_ended or now)
            if done and (now - self._shown >= self._every or done == total):
                # Thinned out where it lies: a large clip would take its time to the host.
                frames, side = (
                    -(-length // most)
                    for length, most in zip(
                        (x0.shape[1], max(x0.shape[2:4])), self._size, strict=True
                    )
                )
                self._estimate = np.asarray(x0[0, ::frames, ::side, ::side]), frames
                self._shown = now
            what = stage if done else f"{stage}: getting ready, which takes longer the first time"
            self._report(Progress(what, done, total, seconds, *self._estimate))

        yield on_chunk
