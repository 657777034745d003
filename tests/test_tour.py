"""The notebook's cells, run as one program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.tour

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"
FOUND = """
import json
from data.moving_shapes.judge import judge
print(json.dumps({
    "asked": judge(videos[0])["colour"],
    "images": images.shape,
    "difference": difference,
    "exit_code": exit_code,
    "losses": losses,
    "kept": all((tuned.params["unet"]["conv_in"][name] == image_params["conv_in"][name]).all()
                for name in ("kernel", "bias")),
}))
"""


def test_every_cell_runs_and_shows_what_is_said(tmp_path):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    program = tmp_path / "tour.py"
    program.write_text("\n".join([*code, FOUND]), encoding="utf-8")
    root = str(NOTEBOOK.parents[1])
    environment = os.environ | {"PYTHONPATH": root, "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(program)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["asked"] == "red" and found["exit_code"] == 0 and found["kept"]
    assert found["difference"] < 1e-4
    assert found["images"][0] == 3
    assert len(found["losses"]) == 20 and max(found["losses"]) < 1
