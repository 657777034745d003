"""`experiments.judge`, from a model to its report."""

import json
import os
import subprocess
import sys

from tests.experiments.runs import ROOT
from tests.tiny import save_tiny_model


def test_reports_on_every_clip_in_a_new_folder(tmp_path):
    model, out = save_tiny_model(tmp_path / "model"), tmp_path / "new" / "seen"
    command = [sys.executable, "-m", "experiments.judge", f"--model={model}", f"--out={out}"]
    subprocess.run(
        [*command, "--num_clips=3", "--steps=1"],
        cwd=ROOT,
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XDG_CACHE_HOME": str(tmp_path)},
        check=True,
    )
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["num_clips"] == 3 and 0 <= report["all"] <= report["shape"] <= 1
    assert sum(sum(row.values()) for row in report["motion_seen"].values()) == 3
    assert out.with_suffix(".png").stat().st_size > 500
