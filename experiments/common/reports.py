"""Output of the programs that measure: Markdown tables on the terminal, and JSON files."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from stunet.errors import writing


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
    write_text(Path(path), text + "\n")
    print(f"written: {path}")


def write_text(path: Path, text: str) -> None:
    """Writes a text file and its folder. An existing file is replaced once the new one is complete.

    Raises:
      UserError: the disk is full or read-only.
    """
    new = path.with_name(f".{path.name}.new")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            new.write_text(text, encoding="utf-8")
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
