"""Which fields of a config may change between two starts of a run."""

from dataclasses import fields

import pytest

from data.datasets import DATASETS
from stunet.errors import UserError
from stunet.training.resuming import CHANGEABLE, check_config, config_differences, plain_config
from tests.experiments.runs import T2I, changed, parse

STARTED = plain_config(parse(T2I))


def test_the_stored_config_has_the_fields_of_a_config_file():
    assert STARTED["stage"] == "t2i" and STARTED["unet"]["channels"] == [8, 16]
    assert T2I.keys() <= STARTED.keys() and T2I["data"].keys() <= STARTED["data"].keys()
    assert not list(config_differences(STARTED, plain_config(parse(T2I))))


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        {"total_steps": 30},
        {"log_every": 2},
        {"checkpoint_every": 3},
        {"keep_checkpoints": 5},
        {"sample_every": 4},
        {"sample_prompts": ("a red circle",)},
        {"mesh": {"fsdp": 2, "frames": 1}},
        {"remat": "blocks"},
        {"gradient_accumulation": 2},
        {"data__data_dir": "elsewhere"},
    ],
)
def test_fields_that_do_not_affect_the_result_may_change(change, finished):
    now = plain_config(parse(changed(T2I, **change)))
    assert check_config(STARTED, now, finished) == []


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 8}, "batch_size: 8, expected 4"),
        ({"seed": 1}, "seed: 1, expected 0"),
        ({"dtype": "bfloat16"}, "dtype: 'bfloat16', expected None"),
        ({"optimizer__name": "muon"}, "optimizer.name: 'muon', expected 'adamw'"),
        ({"optimizer__warmup_steps": 6}, "optimizer.warmup_steps: 6, expected 5"),
        ({"diffusion__loss": "simple"}, "diffusion.loss: 'simple', expected 'min_snr'"),
        ({"data__caption_dropout": 0.2}, "data.caption_dropout: 0.2, expected 0.1"),
        ({"data__num_examples": 50}, "data.num_examples: 50, expected 40"),
    ],
)
def test_other_fields_may_not(change, message, finished):
    now = plain_config(parse(changed(T2I, **change)))
    with pytest.raises(UserError, match=f"config.{message}"):
        check_config(STARTED, now, finished)


def test_the_remedies_of_a_diverged_loss_are_reported_and_do_not_apply_to_a_finished_run():
    now = plain_config(parse(changed(T2I, optimizer__learning_rate=5e-4)))
    (remark,) = check_config(STARTED, now, finished=False)
    assert "optimizer.learning_rate: 0.001 until now, 0.0005" in remark
    with pytest.raises(UserError, match="optimizer.learning_rate: 0.0005, expected 0.001"):
        check_config(STARTED, now, finished=True)


def test_a_field_that_was_set_and_is_not_set_any_more_differs():
    before, now = {"unet": {"temporal": {"resample": [True]}}}, {"unet": {"temporal": None}}
    assert list(config_differences(before, now)) == [("unet.temporal", {"resample": [True]}, None)]
    assert not list(config_differences({"new_field": 1}, {}))  # of another version


def test_changeable_fields_exist():
    known = STARTED.keys() | {"sample_videos"} | {f"data.{name}" for name in STARTED["data"]}
    known |= {f"data.{field.name}" for kind in DATASETS.values() for field in fields(kind)}
    assert set(CHANGEABLE) <= known
