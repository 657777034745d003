import json

import numpy as np
import pytest

from data.moving_shapes.vocabulary import draw_prompts
from experiments import long_clips
from stunet.diffusion import Windows
from stunet.errors import UserError
from tests.tiny import FPS, NUM_FRAMES, UNET, fast_compiles, save_tiny_model


# The tiny model reads fewer tokens than prompts have.
@pytest.mark.filterwarnings("ignore:prompt. 2 of 2 truncated")
def test_reports_on_every_kind_of_clip(tmp_path):
    model, out = save_tiny_model(tmp_path / "model"), tmp_path / "new" / "long"
    flags = [f"--model={model}", f"--out={out}", "--num_clips=2", "--overlap=0", "--overlap=1"]
    with fast_compiles():
        long_clips.main(["long_clips", *flags])
    kinds = json.loads(out.with_suffix(".json").read_text())["clips"]
    assert list(kinds) == [
        "as in training",
        *(f"overlap {n}, {noise} noise" for n in (0, 1) for noise in ("independent", "shuffled")),
    ]
    for kind, row in kinds.items():
        assert 0 <= row["all"] <= row["shape"] <= 1 and row["change"] > 0
        assert ("seams" in row) == (kind != "as in training")
    assert kinds["as in training"]["one object throughout"] == 1
    assert out.with_suffix(".png").stat().st_size > 500


def test_windows_are_judged_one_by_one():
    windows = Windows.over(8, NUM_FRAMES, overlap=0)
    prompts = draw_prompts("train", 1, seed=0)
    videos = np.full((1, 8, 16, 16, 3), -1.0, np.float32)
    content = long_clips._content(videos, windows, prompts)
    assert content["one object throughout"] == 1 and content["shape"] == 0
    videos[:, NUM_FRAMES:, 4:12, 4:12] = [1.0, -1.0, -1.0]  # a red square in the second half
    assert long_clips._content(videos, windows, prompts)["one object throughout"] == 0


def test_wide_overlaps_and_image_models_are_refused(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    with pytest.raises(UserError, match="--overlap: 2, .* 4 frames"):
        long_clips.main(["long_clips", f"--model={model}", f"--out={tmp_path}/out", "--overlap=2"])
    model = save_tiny_model(tmp_path / "images", UNET.text_to_image(), num_frames=1, fps=FPS)
    with pytest.raises(UserError, match="--model: .*images.*videos"):
        long_clips.main(["long_clips", f"--model={model}", f"--out={tmp_path}/out"])
