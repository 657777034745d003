import json

import numpy as np
import pytest

from experiments.benchmarks import data
from stunet.errors import UserError


def test_measures_storage_and_pipeline(tmp_path, capsys):
    out = tmp_path / "data.json"
    data.main(["data", "--shape=16x32x32", "--clips=3", f"--out={out}"])
    results = json.loads(out.read_text())
    (storage,) = results["storage"]
    assert storage["segments"] == 3 and storage["segment_frames"] == 20
    assert storage["segment_bytes"] == pytest.approx(storage["fraction_of_raw"] * 20 * 32 * 32 * 3)
    assert 0.02 < storage["fraction_of_raw"] < 0.3
    assert 42 < storage["worst_psnr"] <= storage["psnr"] < 55
    assert 0 < storage["raw_s"] < storage["frame_s"] < storage["window_s"] < storage["encode_s"]
    encoded, raw = results["pipeline"]
    assert [encoded["storage"], raw["storage"]] == ["encoded", "raw"]
    assert encoded["clips"] == raw["clips"] == 3
    assert encoded["clip_bytes"] < raw["clip_bytes"]
    assert encoded["workers"] >= 1 and raw["workers"] == 0
    assert encoded["read_rate"] > encoded["prepare_rate"] > 0 and encoded["wall_rate"] > 0
    assert "16x32x32" in capsys.readouterr().out


def test_rendered_videos_differ_and_move(tmp_path):
    for seed in range(2):
        data.render(tmp_path / f"{seed}.mp4", 48, 4, seed)
    first, second = (
        np.stack(list(data.decode_frames(tmp_path / f"{seed}.mp4", data.FPS, 32)))
        for seed in range(2)
    )
    assert first.shape == (4, 32, 32, 3)
    assert np.abs(first.astype(int) - second).mean() > 10
    assert np.abs(np.diff(first.astype(int), axis=0)).mean() > 0.5


def test_a_folder_without_videos(tmp_path):
    with pytest.raises(UserError, match=f"--videos.*{tmp_path}"):
        data.main(["data", f"--videos={tmp_path}", f"--out={tmp_path}/x"])
