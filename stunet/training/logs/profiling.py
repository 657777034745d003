"""A trace of some training steps, for xprof and TensorBoard's profile plugin."""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from stunet.errors import UserError, writing
from stunet.paths import AnyPath, is_remote, write_bytes


def parse_profile_steps(text: str, total_steps: int) -> range:
    """Parses the steps "A:B" to profile, both included.

    Raises:
      UserError: the text has another form, or the run has no such steps.
    """
    found = re.fullmatch(r"(\d{1,18}):(\d{1,18})", text)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last <= total_steps:
        raise UserError(
            f"--profile_steps={text}: expected A:B with 1 <= A <= B <= total_steps ({total_steps})"
        )
    return range(first, last + 1)


class Profiler:
    """Traces steps of a run; without steps it does nothing. Steps before a resumed one are omitted.

    Args:
      steps: Consecutive steps to trace.
      folder: Folder to write the trace to, on disk or in a bucket.
    """

    def __init__(self, steps: range, folder: AnyPath):
        self._steps, self._folder = steps, folder
        self._target: Path | None = None  # while a trace is recorded
        self._open = contextlib.ExitStack()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Marks the block as a step of the trace and begins the trace before its first step."""
        if number not in self._steps:
            yield
            return
        if self._target is None:
            self._start()
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def end(self, number: int, metrics: dict[str, jax.Array]) -> None:
        """Ends the trace after its last step, whose results it waits for.

        Raises:
          UserError: the trace cannot be written.
        """
        if self._target is not None and number == self._steps[-1]:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Writes the trace if one is being recorded.

        Raises:
          UserError: the trace cannot be written.
        """
        if self._target is None:
            return
        target, self._target = self._target, None
        with self._open, writing(self._folder):
            jax.profiler.stop_trace()
            if is_remote(self._folder):  # the profiler writes to disks only
                for file in filter(Path.is_file, target.rglob("*")):
                    name = file.relative_to(target).as_posix()
                    write_bytes(self._folder / name, file.read_bytes())

    def _start(self) -> None:
        target = self._folder
        if is_remote(target):
            temporary = tempfile.TemporaryDirectory(prefix="stunet-")
            target = self._open.enter_context(temporary)
        self._target = Path(target)
        jax.profiler.start_trace(self._target)
