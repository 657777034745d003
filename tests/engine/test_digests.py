"""Digests of a job change with everything that a result depends on."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from stunet.engine.digests import job_digests
from stunet.engine.request import Request, Sampling
from stunet.errors import UserError
from stunet.video_io import write_video
from tests.tiny import CAPTIONS, remove_checksums, save_tiny_model


def test_digests_change_with_settings_files_and_weights(tmp_path):
    folder, other = save_tiny_model(tmp_path / "model"), tmp_path / "other"
    shutil.copytree(folder, other)
    video = tmp_path / "in.mp4"
    write_video(video, np.zeros((4, 16, 16, 3)), 8)
    request = Request(application="edit", prompts=(CAPTIONS[0],), video=video, strength=0.5)
    digests = job_digests([request], [folder])

    def changed(request=request):
        found = job_digests([request], [folder])
        return {name for name in digests if found[name] != digests[name]}

    assert changed() == set()
    assert changed(dataclasses.replace(request, prompts=(CAPTIONS[1],))) == {"prompts"}
    seed = dataclasses.replace(request, sampling=Sampling(seed=1))
    assert changed(seed) == {"seed", "prompts"}
    assert job_digests([request], [other])[str(other)] == digests[str(folder)]

    write_video(video, np.ones((4, 16, 16, 3)), 8)
    assert changed() == {str(video)}
    write_video(video, np.zeros((4, 16, 16, 3)), 8)
    remove_checksums(folder)
    for name, content in (("config.json", None), ("unet_spatial.safetensors", b"\x00")):
        path = folder / name
        before = path.read_bytes()
        if content is None:
            path.write_text(json.dumps({**json.loads(before), "fps": 9.0}))
        else:
            path.write_bytes(before[:-1] + content)
        assert changed() == {str(folder)}
        path.write_bytes(before)
    assert changed() == set()
    video.unlink()
    with pytest.raises(UserError, match=r"in\.mp4"):
        job_digests([request], [folder])
