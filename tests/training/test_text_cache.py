import dataclasses

import jax
import numpy as np
import pytest

from stunet.engine import encode_text, load
from stunet.errors import UserError
from stunet.training.text_cache import check_text_states, write_text_states
from tests.tiny import save_tiny_model

CAPTIONS = ["a red circle", "a blue square spinning", "something else"]


def test_states_are_the_encoders_and_only_its_own(tmp_path):
    model = load(save_tiny_model(tmp_path / "model"))
    path = tmp_path / "text_states_train.npy"
    with pytest.raises(UserError, match=r"no cached text states at .*text_states_train"):
        check_text_states(path, model)
    write_text_states(path, CAPTIONS, model)
    check_text_states(path, model)
    expected = np.asarray(encode_text(model, [*CAPTIONS, ""])).astype(np.float16)
    np.testing.assert_allclose(np.load(path), expected, atol=1e-3)
    assert not list(tmp_path.glob(".*.new"))

    changed = jax.tree.map(lambda leaf: leaf + 1, model.params["text_encoder"])
    other = dataclasses.replace(model, params={**model.params, "text_encoder": changed})
    with pytest.raises(UserError, match="made by another text encoder"):
        check_text_states(path, other)
