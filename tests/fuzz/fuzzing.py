"""Runs random cases of bad input and collects those that do not end as promised.

The promise: a case is accepted, or ends with a `UserError` of one line, and returns quickly.

    STUNET_FUZZ_CASES=5000 python -m pytest tests/fuzz -s

runs 5,000 cases of each fuzzer with a random seed, which is printed. STUNET_FUZZ_SEED repeats a
run. Without the variables, the tests run 200 cases that are always the same.
"""

import contextlib
import os
import random
import resource
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from stunet.errors import UserError

CASES = int(os.environ.get("STUNET_FUZZ_CASES", "200"))
SEED = int(os.environ.get("STUNET_FUZZ_SEED", random.SystemRandom().getrandbits(32)))
IS_RANDOM = not os.environ.keys().isdisjoint({"STUNET_FUZZ_CASES", "STUNET_FUZZ_SEED"})
SLOW_S = 10.0  # a case takes milliseconds, also on a machine with much other work
MAX_MESSAGE = 500  # characters
MEMORY_BYTES = 8 * 2**30  # that a case may add to the address space

HUGE = 10**20
NUMBERS = [HUGE, -HUGE, 2**63, 2**31, -1, 0, 1, 100_000_000, 0.5, 1e300, -0.0]
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]


class Slow(BaseException):
    """Raised in a case that takes longer than `SLOW_S`."""


class Finished(BaseException):
    """Raised in place of work that follows the checks of a case."""


def check_cases(cases: SearchStrategy, run: Callable[[Any], object]) -> None:
    """Runs `CASES` cases.

    Args:
      cases: Values that describe a case; `repr` shows it.
      run: Runs a case. Returns None or raises `Finished` if it was accepted, raises `UserError` if
        it was refused, or raises AssertionError if it did not end as promised.

    Raises:
      AssertionError: Some did not end as promised. Names all of them.
    """
    failures: list[str] = []
    counts = {"accepted": 0, "refused": 0}

    @settings(
        max_examples=CASES,
        derandomize=not IS_RANDOM,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def every(case: Any) -> None:
        ended = _end_of(lambda: run(case))
        if ended in counts:
            counts[ended] += 1
        else:
            failures.append(f"{case!r:.300}: {ended}")

    if IS_RANDOM:
        print(f"\nSTUNET_FUZZ_CASES={CASES} STUNET_FUZZ_SEED={SEED}")
        every = seed(SEED)(every)
    with _limited_memory():
        every()
    print(f"{counts['accepted']} accepted, {counts['refused']} refused, {len(failures)} failed")
    total = sum(counts.values()) + len(failures)  # fewer than CASES if there are no more
    assert not failures, "\n".join([f"{len(failures)} of {total} cases failed", *failures])
    assert min(counts.values()) >= total / 50, counts  # the cases reach both ends


def _end_of(run: Callable[[], object]) -> str:
    """Returns "accepted", "refused", or what is wrong."""

    def expire(*_: Any) -> None:
        raise Slow

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, SLOW_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run()
    except Finished:
        pass
    except UserError as error:
        return describe_message(str(error)) or "refused"
    except Slow as error:
        return f"takes longer than {SLOW_S:g} s at {_place(error)}"
    except BaseException as error:
        return f"{type(error).__name__} at {_place(error)}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return "accepted"


def describe_message(message: str) -> str | None:
    """Returns what is wrong with an error message, or None."""
    if len(message.splitlines()) != 1:
        return f"a message of {len(message.splitlines())} lines: {message[:200]!r}"
    if not message.isprintable():
        return f"a message with control characters: {message[:200]!r}"
    if len(message) > MAX_MESSAGE:
        return f"a message of {len(message)} characters: {message[:100]!r}"
    return None


def _place(error: BaseException) -> str:
    """Returns the deepest line of this project in a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    others = ("/tests/fuzz/", "/site-packages/", "/lib/python")
    own = [frame for frame in frames if not any(part in frame.filename for part in others)]
    frame = (own or frames)[-1]
    return f"{os.path.relpath(frame.filename)}:{frame.lineno}"


@contextlib.contextmanager
def _limited_memory() -> Iterator[None]:
    """Lets a case that allocates a huge array fail instead of the machine."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
