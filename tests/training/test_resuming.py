"""Which fields of a config may change between two starts of a run, and what is recorded of it."""

import json
from dataclasses import fields

import pytest

from data.datasets import DATASETS
from stunet.errors import UserError
from stunet.training.settings import RunConfig
from stunet.training.stages import STAGES
from stunet.training.workdir import run_record
from stunet.training.workdir.config_changes import (
    FIXED,
    FREE,
    check_config,
    config_changes,
    plain_config,
)
from stunet.training.workdir.resuming import check_run_config, record_run
from tests.experiments.runs import T2I, changed, parse

STARTED = plain_config(parse(T2I))


def test_the_stored_config_has_the_fields_of_a_config_file():
    assert STARTED["stage"] == "t2i" and STARTED["unet"]["channels"] == [8, 16]
    assert T2I.keys() <= STARTED.keys() and T2I["data"].keys() <= STARTED["data"].keys()
    assert config_changes(STARTED, parse(T2I)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"total_steps": 30},
        {"log_every": 2},
        {"checkpoint_every": 3},
        {"checkpoint_minutes": 1.0},
        {"keep_checkpoints": 5},
        {"sample_every": 4},
        {"sample_prompts": ("a red circle",)},
        {"mesh": {"fsdp": 2, "frames": 1}},
        {"remat": "blocks"},
        {"gradient_accumulation": 2},
        {"data__data_dir": "elsewhere"},
    ],
)
def test_fields_that_do_not_affect_the_result_may_change(change):
    assert check_config(STARTED, parse(changed(T2I, **change))) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_steps": 19}, "total_steps: 19, expected 20 or more"),
        ({"optimizer__learning_rate": 5e-4}, "optimizer.learning_rate: 0.0005, expected 0.001"),
        ({"optimizer__clip_norm": 0.5}, "optimizer.clip_norm: 0.5, expected 1.0"),
        ({"optimizer__warmup_steps": 6}, "optimizer.warmup_steps: 6, expected 5"),
        ({"optimizer__ema_decay": 0.9}, "optimizer.ema_decay: 0.9, expected 0.9999"),
        ({"diffusion__loss": "simple"}, "diffusion.loss: 'simple', expected 'min_snr'"),
        ({"data__seed": 1}, "data.seed: 1, expected 0"),
        ({"data__caption_dropout": 0.2}, "data.caption_dropout: 0.2, expected 0.1"),
        ({"data__num_examples": 50}, "data.num_examples: 50, expected 40"),
    ],
)
def test_other_fields_may_change_only_by_name(change, message):
    now = parse(changed(T2I, **change))
    name, values = message.split(": ")
    new, old = values.removesuffix(" or more").split(", expected ")
    with pytest.raises(UserError, match=f"^config.{message}.*--allow_changed={name}$"):
        check_config(STARTED, now)
    with pytest.raises(UserError, match=name):
        check_config(STARTED, now, ["batch_size"])
    (remark,) = check_config(STARTED, now, [name])
    assert remark == f"config.{name}: {old} until now, {new} from now on"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 8}, "batch_size: 8, expected 4"),
        ({"seed": 1}, "seed: 1, expected 0"),
        ({"dtype": "bfloat16"}, "dtype: 'bfloat16', expected None"),
        ({"unet__channels": (8, 24)}, r"unet.channels: \[8, 24\], expected \[8, 16\]"),
        ({"optimizer__name": "muon"}, "optimizer.name: 'muon', expected 'adamw'"),
        ({"diffusion__prediction": "eps"}, "diffusion.prediction: 'eps', expected 'v'"),
    ],
)
def test_fields_that_parameters_depend_on_never_change(change, message):
    allowed = [message.split(":")[0]]
    with pytest.raises(UserError, match=f"^config.{message}") as refusal:
        check_config(STARTED, parse(changed(T2I, **change)), allowed)
    assert "--allow_changed" not in str(refusal.value)


def test_all_changed_fields_are_named_in_one_line():
    now = parse(changed(T2I, diffusion__loss="simple", data__seed=2, log_every=3))
    with pytest.raises(UserError, match="data.seed: 2, expected 0.*=data.seed,diffusion.loss$"):
        check_config(STARTED, now)


def test_a_field_that_was_set_and_is_not_set_any_more_differs():
    before = {**STARTED, "sampling": {"steps": 3}}
    assert config_changes(before, parse(T2I)) == [("sampling", {"steps": 3}, None, True)]


def test_fields_that_a_stored_config_lacks_count_as_their_defaults():
    before = json.loads(json.dumps(STARTED))
    del before["optimizer"]["clip_norm"], before["remat"], before["text_denoising"]
    del before["diffusion"]
    assert check_config(before, parse(changed(T2I, diffusion={}))) == []
    with pytest.raises(UserError, match="optimizer.clip_norm: 0.5, expected 1.0"):
        check_config(before, parse(changed(T2I, diffusion={}, optimizer__clip_norm=0.5)))
    with pytest.raises(UserError, match="diffusion.prediction: 'v', expected 'eps'"):
        check_config(before, parse(T2I))


def test_a_field_of_another_version_is_reported():
    before = {**STARTED, "optimizer": {**STARTED["optimizer"], "momentum": 0.8, "unset": None}}
    (remark,) = check_config(before, parse(T2I))
    assert "optimizer.momentum: 0.8 until now" in remark


def test_lists_of_fields_name_existing_ones():
    known = {field.name for kind in (RunConfig, *STAGES.values()) for field in fields(kind)}
    known |= {"stage"} | {f"data.{field.name}" for k in DATASETS.values() for field in fields(k)}
    known |= {f"{part}.{name}" for part in ("optimizer", "diffusion") for name in STARTED[part]}
    assert {*FREE, *FIXED} <= known and not set(FREE) & set(FIXED)


def recorded(workdir):
    return json.loads((workdir / "run.json").read_text())


def test_changes_are_recorded_with_their_step_and_survive_later_starts(tmp_path, monkeypatch):
    record_run(parse(T2I), "first", tmp_path)
    assert recorded(tmp_path)["changes"] == []
    assert recorded(tmp_path)["versions"].keys() > {"stunet", "jax", "flax", "orbax-checkpoint"}
    lower = parse(changed(T2I, optimizer__learning_rate=5e-4))
    record_run(lower, "first", tmp_path, step=8)
    versions = {**run_record.installed_versions(), "jax": "99.0"}
    monkeypatch.setattr(
        "stunet.training.workdir.resuming.installed_versions", lambda: dict(versions)
    )
    (remark,) = check_run_config(lower, tmp_path)
    assert "jax" in remark and "99.0" in remark and "flax" not in remark
    record_run(lower, "second", tmp_path, step=12)
    record_run(lower, "second", tmp_path, step=16)
    jax = run_record.installed_versions()["jax"]
    assert recorded(tmp_path)["changes"] == [
        {"step": 8, "field": "optimizer.learning_rate", "old": 1e-3, "new": 5e-4},
        {"step": 12, "field": "versions.jax", "old": jax, "new": "99.0"},
        {"step": 12, "field": "data", "old": "first", "new": "second"},
    ]
    assert check_run_config(lower, tmp_path) == []


def test_names_that_are_allowed_to_change(tmp_path):
    config = parse(T2I)
    assert (
        check_run_config(config, tmp_path, ["data", "data.seed"]) == []
    )  # nothing to compare with
    record_run(config, "data", tmp_path)
    (remark,) = check_run_config(config, tmp_path, ["data", "data.seed"])
    assert "data.seed" in remark
    record_run(parse(changed(T2I, data__seed=1)), "data", tmp_path)
    # The command of a preempted run is repeated.
    assert check_run_config(parse(changed(T2I, data__seed=1)), tmp_path, ["data.seed"]) == []
    for name, right in (
        ("optimizer.lerning_rate", "optimizer.learning_rate"),
        ("config.data.seed", "data.seed"),
        ("optimizer", "optimizer"),
        ("", "data"),
    ):
        with pytest.raises(UserError, match=f"^--allow_changed: .*'{name}'.*'{right}"):
            check_run_config(config, tmp_path, [name])


def test_run_files_of_older_versions(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"config": STARTED}))
    assert check_run_config(parse(T2I), tmp_path) == []
    record_run(parse(T2I), "now", tmp_path, step=4, data_before="before")
    (change,) = recorded(tmp_path)["changes"]
    assert change == {"step": 4, "field": "data", "old": "before", "new": "now"}
