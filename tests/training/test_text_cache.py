import dataclasses
import functools

import jax
import numpy as np
import pytest

from stunet.engine.sampling import encode_text
from stunet.errors import UserError
from stunet.model import load
from stunet.training.text_cache import check_text_states, write_text_states
from tests.experiments.runs import full_disk
from tests.tiny import save_tiny_model

CAPTIONS = ["a red circle", "a blue square spinning", "something else"]


def test_cached_states_belong_to_one_text_encoder(tmp_path):
    model = load(save_tiny_model(tmp_path / "model"))
    path = tmp_path / "text_states_train.npy"
    with pytest.raises(UserError, match="text_states_train.npy: .*cache_text"):
        check_text_states(path, model)
    write_text_states(path, CAPTIONS, model, functools.partial(encode_text, model))
    check_text_states(path, model)
    expected = np.asarray(encode_text(model, [*CAPTIONS, ""])).astype(np.float16)
    np.testing.assert_allclose(np.load(path), expected, atol=1e-3)
    assert not list(tmp_path.glob(".*.new"))

    changed = jax.tree.map(lambda leaf: leaf + 1, model.params["text_encoder"])
    other = dataclasses.replace(model, params={**model.params, "text_encoder": changed})
    with pytest.raises(UserError, match="text_states_train.npy: .*another"):
        check_text_states(path, other)


@pytest.mark.parametrize("end", ["full disk", "Ctrl-C"])
def test_an_end_halfway_keeps_the_old_states_and_leaves_no_other_file(tmp_path, end):
    model = load(save_tiny_model(tmp_path / "model"))
    path = tmp_path / "states" / "text_states_train.npy"
    path.parent.mkdir()
    write_text_states(path, CAPTIONS, model, functools.partial(encode_text, model))
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    texts = [str(number) for number in range(600)]
    width = np.load(path).shape[1:]

    def encode(batch):
        if end == "Ctrl-C" and batch[0] == "512":
            raise KeyboardInterrupt
        return np.zeros((len(batch), *width), np.float32)

    if end == "Ctrl-C":
        with pytest.raises(KeyboardInterrupt):
            write_text_states(path, texts, model, encode)
    else:
        with full_disk(10_000), pytest.raises(UserError, match=f"{path}: .*too large"):
            write_text_states(path, texts, model, encode)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before
    write_text_states(path, texts, model, lambda batch: np.ones((len(batch), *width)))
    assert np.load(path).shape == (601, *width) and np.load(path).dtype == np.float16
    check_text_states(path, model)
