"""Running the other programs of `experiments`, each in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from stunet.errors import UserError

SEEDS = (0, 1, 2)


def call(program: str, flags: Sequence[str], log: Path) -> None:
    """Runs a program on one thread, so that several share a machine fairly."""
    with log.open("a") as file:
        code = subprocess.run(
            [sys.executable, "-m", program, *flags],
            stdout=file,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        ).returncode
    if code:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"{program} ended with {code}: {''.join(last)} (all of it: {log})")
