"""Ends a program on Ctrl-C, SIGTERM, SIGHUP and SIGQUIT, without a traceback or a crash.

Python runs signal handlers between two operations of the main thread, so a compilation delays them
by minutes. A thread that reads signals from a pipe ends the process in that case.
"""

import contextlib
import os
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_KEYBOARD = (signal.SIGINT, signal.SIGQUIT)  # a user who repeats these does not want to wait
_DUPLICATE_S = 0.2  # a terminal and a parent process may both pass on one Ctrl-C
_BUSY_S = 3.0  # time for the main thread to notice a signal
_CLEANUP_S = 10.0  # time to end after that


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread by a signal.

    Attributes:
      number: Number of the signal.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Watch:
    """The handlers and the thread of this process."""

    def __init__(self, name: str, is_program: bool):
        self.name, self.is_program = name, is_program
        self.raises = False  # False: a signal ends the process immediately
        self.deferred = False
        self.exit_code: int | None = None  # None: 128 + signal
        self.forward: int | None = None
        self.received: int | None = None  # the first signal
        self.raised: float | None = None  # when Interrupted was raised
        self.old_unraisablehook = sys.unraisablehook
        self._repeat = False
        self._ending = threading.Lock()
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        # An ignored signal stays ignored, such as SIGHUP under nohup.
        self._old = {
            number: signal.signal(number, self._handle)
            for number in SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        threading.Thread(target=self._run, name="signals", daemon=True).start()

    def close(self) -> None:
        """Restores the handlers."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        os.close(self._write)

    def end(self, number: int) -> NoReturn:
        """Prints one line and ends the process."""
        line = f"{message(self.name, number)}\n"
        self.exit(128 + number if self.exit_code is None else self.exit_code, line)

    def exit(self, code: int, line: str = "") -> NoReturn:
        """Ends the process without Python's shutdown."""
        self._ending.acquire()  # never released: the first of two threads ends the process
        flushing = threading.Thread(target=_flush, daemon=True)
        flushing.start()
        flushing.join(1.0)  # a thread that was interrupted in `print` holds the stream's lock
        with contextlib.suppress(OSError):
            os.write(2, line.encode())
        os._exit(code)

    def _handle(self, number: int, frame: object) -> None:
        self._receive(number)
        if not self.raises:
            self.end(number)
        if not self.deferred and self.forward is None and self.raised is None:
            self.raised = time.monotonic()
            raise Interrupted(number)

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._read, select.POLLIN)
        first: tuple[int, float] | None = None
        repeated = False
        while True:
            for fd, event in poller.poll(100 if first else None):
                if fd == self._read:
                    numbers = os.read(fd, 64)
                    if not numbers:  # closed
                        os.close(fd)
                        return
                    for number in filter(SIGNALS.__contains__, numbers):
                        now = time.monotonic()
                        if repeated:
                            repeated = False
                        elif first is None:
                            first = number, now
                            self._on_first(number, poller)
                        elif number in _KEYBOARD and now - first[1] > _DUPLICATE_S:
                            self.exit_code = None
                            self.end(number)
                elif event & (select.POLLERR | select.POLLHUP):
                    _silence(fd)
                else:
                    poller.unregister(fd)
            if first and self._repeat:
                self._repeat, repeated = False, True
                os.kill(os.getpid(), first[0])
            if first and not self.deferred and self.forward is None:
                since, limit = (self.raised, _CLEANUP_S) if self.raised else (first[1], _BUSY_S)
                if time.monotonic() - since > limit:
                    self.end(first[0])

    def on_unraisable(self, arguments: Any) -> None:
        """Repeats a signal whose exception Python ignored, such as during garbage collection."""
        if isinstance(arguments.exc_value, Interrupted):
            self.raised, self._repeat = None, True  # by the thread, after this function returns
        else:
            self.old_unraisablehook(arguments)

    def _receive(self, number: int) -> None:
        if self.received is not None:
            return
        # Ctrl-C also ends the reader of a pipe (`| tee`), which must not keep this program from
        # saving. A pipe that this process opens for reading can always be written to.
        for fd in (1, 2):
            with contextlib.suppress(OSError):
                if stat.S_ISFIFO(os.fstat(fd).st_mode):
                    os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK)
        self.received = number

    def _on_first(self, number: int, poller: select.poll) -> None:
        self._receive(number)
        for fd in (1, 2):  # a closed terminal cannot be written to, either
            poller.register(fd, 0)
        if self.forward is not None and number != self.forward:
            os.kill(os.getpid(), self.forward)


_watch: _Watch | None = None


def message(name: str, number: int) -> str:
    """Returns the line that a program prints when a signal ends it."""
    reason = "cancelled" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    return f"{name}: {reason}"


def watch(name: str) -> None:
    """Handles signals from now on, for programs, before their heavy imports.

    Until `run_command` runs, a signal prints one line and ends the process.

    Args:
      name: Name of the program.
    """
    global _watch
    if _watch is None:
        _watch = _Watch(name, is_program=True)


@contextlib.contextmanager
def raising(name: str) -> Iterator[None]:
    """Raises `Interrupted` in the main thread when a signal arrives; used by `run_command`.

    If the main thread does not notice it within 3 seconds or does not end within 10, the process
    ends. A second Ctrl-C ends it immediately. Without `watch`, handlers are restored after the
    block. Has no effect in other threads than the main one.
    """
    global _watch
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own = _watch is None
    if own:
        _watch = _Watch(name, is_program=False)
    _watch.name, _watch.raises = name, True
    _watch.old_unraisablehook, sys.unraisablehook = sys.unraisablehook, _watch.on_unraisable
    try:
        yield
    finally:
        sys.unraisablehook = _watch.old_unraisablehook
        _watch.raises = False
        if own:
            _watch.close()
            _watch = None


def defer() -> None:
    """Only records signals from now on, because there is something to save.

    `received` returns the recorded signal. A second Ctrl-C ends the process with 128 + signal.
    """
    if _watch is not None:
        _watch.deferred = True


@contextlib.contextmanager
def interruptible(exit_code: int) -> Iterator[None]:
    """Raises `Interrupted` within this block, after `defer`.

    Args:
      exit_code: Exit code if the process has to be ended because the main thread is busy.
    """
    if (current := _watch) is None:
        yield
        return
    current.deferred, current.exit_code = False, exit_code
    try:
        yield
    finally:
        current.deferred, current.exit_code = True, None


def received() -> int | None:
    """Returns the number of the first signal that arrived, or None."""
    return None if _watch is None else _watch.received


def forward_to(number: int) -> None:
    """Passes each other signal on as this one, for a library that handles it (JAX in a cluster)."""
    if _watch is not None:
        _watch.forward = number


def report(error: KeyboardInterrupt, name: str) -> int:
    """Prints the line for a signal and returns the exit code."""
    number = error.number if isinstance(error, Interrupted) else int(signal.SIGINT)
    with contextlib.suppress(OSError):
        print(message(name, number), file=sys.stderr)
    return 128 + number


def leave(code: int) -> None:
    """Ends a program without Python's shutdown.

    Threads of JAX that still compute would crash during that shutdown. Has no effect in a cluster,
    whose processes wait for each other at their end, and without `watch`.
    """
    if _watch is not None and _watch.is_program and _watch.forward is None:
        _watch.exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _silence(fd: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)
