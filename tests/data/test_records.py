"""Building a dataset on a full disk."""

import pytest

from data import pipeline
from stunet.errors import UserError
from tests.experiments.runs import T2I, full_disk


def test_a_full_disk_leaves_no_dataset_and_the_next_start_builds_it(tmp_path):
    config = pipeline.parse_config(T2I["data"] | {"data_dir": str(tmp_path)})
    with full_disk(600), pytest.raises(UserError, match=rf"{tmp_path}/moving_shapes/.*too large"):
        pipeline.prepare(config)
    assert not list(tmp_path.rglob("*.array_record*")) and not list(tmp_path.rglob("*incomplete*"))
    pipeline.prepare(config)
    assert len(pipeline.captions(config)) == 40
