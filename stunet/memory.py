"""Refusal of arrays that could never fit in memory."""

import os

from stunet.errors import UserError


def physical_memory() -> int:
    """Returns the size of this machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(what: str, num_bytes: int) -> None:
    """Checks that an array is not larger than this machine's memory.

    Args:
      what: The fields that determine the size, and the array.
      num_bytes: Size of the array.

    Raises:
      UserError: It is larger.
    """
    if num_bytes > (limit := physical_memory()):
        raise UserError(
            f"{what} would need {_gibibytes(num_bytes)} of memory, expected less than the "
            f"{_gibibytes(limit)} of this machine"
        )


def _gibibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.0f} GiB"
