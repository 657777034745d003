"""Runs the cells of the notebook as one program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.tour

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"
REPORT = """
import json
from data.moving_shapes.judge import judge
print(json.dumps({
    "colour": judge(result.video)["colour"],
    "images": images.shape,
    "difference": difference,
    "exit_code": exit_code,
    "losses": losses,
    "image_model_unchanged": all(
        (tuned.params["unet"]["conv_in"][name] == image_params["conv_in"][name]).all()
        for name in ("kernel", "bias")
    ),
}))
"""


def test_every_cell_runs_with_the_results_that_the_text_states(tmp_path):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    program = tmp_path / "tour.py"
    program.write_text("\n".join([*code, REPORT]), encoding="utf-8")
    root = str(NOTEBOOK.parents[1])
    environment = os.environ | {"PYTHONPATH": root, "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(program)]
    process = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
    )
    assert process.returncode == 0, process.stderr[-2000:]
    report = json.loads(process.stdout.splitlines()[-1])
    assert report["colour"] == "red"
    assert report["exit_code"] == 0
    assert report["image_model_unchanged"]
    assert report["difference"] < 1e-4
    assert report["images"][0] == 3
    assert len(report["losses"]) == 20 and max(report["losses"]) < 1
