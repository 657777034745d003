"""Output of the programs that measure: Markdown tables on the terminal, and JSON files."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import date
from typing import Any

from stunet.paths import user_path, write_text


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints an aligned Markdown table. Floats get three significant digits."""
    cells = [[_text(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for number, row in enumerate(cells):
        print("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (w + 2) for w in widths) + "|")


def _text(cell: Any) -> str:
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def write_json(path: str, result: dict[str, Any]) -> None:
    """Writes `result` to a JSON file, with the date, the processor and its number of CPUs."""
    machine = {"machine": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
    text = json.dumps({"date": str(date.today()), **machine, **result}, indent=1)
    write_text(user_path(path), text + "\n")
    print(f"written: {path}")
