"""Configs of the ablations, and their commands and reports with results that the tests write."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.pipeline import parse_config
from experiments.ablations import (
    additions,
    additions_emoji,
    attention_depth,
    cost,
    frozen_image_model,
    key_frames,
    multidiffusion,
    resampler_init,
    resampler_init_ucf101,
    style_strength,
    temporal_blocks,
    temporal_resampling,
    window_length,
)
from experiments.ablations.harness import ablation as harness
from experiments.ablations.harness import trained
from experiments.ablations.harness.ablation import list_commands
from experiments.ablations.table import ABLATIONS
from experiments.benchmarks.harness.workloads import ProgramCall, program_calls
from experiments.common.flops import model_flops
from experiments.common.networks import IF_M
from experiments.configs import emoji, tiny_t2i
from stunet.errors import UserError
from stunet.models.unet import UNet, init_unet
from stunet.models.unet_config import TemporalConfig, UNetConfig
from stunet.schema import from_dict
from stunet.training.config import parse_train_config
from stunet.video_io import read_video, write_image
from stunet.weights import shipped
from stunet.weights.model_folder import read_model_folder
from stunet.weights.trees import flatten, is_temporal
from tests.tiny import UNET

STEPS = 40
COMPARED_FIELDS = {
    additions: "temporal",
    additions_emoji: "temporal",
    attention_depth: "temporal",
    frozen_image_model: "trained",
    resampler_init: "temporal",
    resampler_init_ucf101: "temporal",
    temporal_resampling: "temporal",
    temporal_blocks: "temporal",
    window_length: "batch_size",
}
CASES = [(m, scale) for m in COMPARED_FIELDS for scale in m.ABLATION.scales]


@pytest.mark.parametrize(("module", "scale"), CASES)
def test_variants_differ_in_the_compared_field_and_seeds_in_nothing_else(module, scale):
    ablation, compared = module.ABLATION, COMPARED_FIELDS[module]
    assert f"experiments.ablations.{ablation.name}" == module.__name__
    assert ABLATIONS[ablation.name] is ablation
    end = "" if scale == "cpu" else ",tpu"
    configs = {
        (variant, seed): module.get_config(f"{variant},{seed}{end}").to_dict()
        for variant in ablation.variants
        for seed in (0, 2)
    }
    runs = {run: parse_train_config(values, parse_config) for run, values in configs.items()}
    first, second, *_ = ablation.variants
    base = parse_train_config(trained.base_config(0, scale).to_dict(), parse_config, "base")
    assert ablation.shared == (runs[first, 0] == base)
    paper, other_variant = configs[first, 0], configs[second, 0]
    assert paper[compared] != other_variant[compared]
    other_seed = configs[first, 2]
    assert (other_seed["seed"], other_seed["data"]["seed"]) == (2, 2)
    for values in (other_variant, other_seed):
        for name in (compared, "total_steps", "optimizer", "seed", "data"):
            del values[name]
    assert other_variant == {name: paper[name] for name in other_variant}
    assert other_seed == other_variant


def network(config, scale, t2i=None):
    """Returns the network of a config, its parameter shapes, and the tokens of a caption."""
    if scale == "cpu":
        t2i = t2i or tiny_t2i.get_config()
        image, tokens = from_dict(UNetConfig, t2i.unet.to_dict(), "unet"), 20
    else:
        image, tokens = IF_M, 77
    temporal = from_dict(TemporalConfig, config.temporal.to_dict(), "temporal")
    unet = dataclasses.replace(image, temporal=temporal)
    return unet, jax.eval_shape(lambda: init_unet(unet, jax.random.key(0))), tokens


def forward_flops(config, scale, t2i=None):
    unet, params, tokens = network(config, scale, t2i)
    size = config.data.resolution
    inputs = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((1, config.data.num_frames, size, size, 3), (1,), (1, tokens, unet.text_dim))
    ]
    return sum(
        model_flops(lambda p, *a: UNet(unet).apply({"params": p}, *a), params, *inputs).values()
    )


def num_added(config, scale):
    _, params, _ = network(config, scale)
    return sum(leaf.size for path, leaf in flatten(params).items() if is_temporal(path))


@pytest.mark.parametrize(("scale", "end"), [("cpu", ""), ("tpu", ",tpu")])
def test_the_full_rate_gets_as_many_flops_in_fewer_steps(scale, end):
    resampled, full = (
        temporal_resampling.get_config(f"{variant},0{end}")
        for variant in ("resampled", "full_rate")
    )
    assert full.total_steps < resampled.total_steps
    flops = [c.total_steps * forward_flops(c, scale) for c in (resampled, full)]
    assert flops[1] == pytest.approx(flops[0], rel=1 / full.total_steps)


@pytest.mark.parametrize(
    ("module", "t2i"), [(additions, None), (additions_emoji, emoji.get_config("t2i"))]
)
def test_the_papers_blocks_get_as_many_flops_in_more_steps(module, t2i):
    complete, paper = (module.get_config(f"{v},0") for v in ("all", "paper_equal_flops"))
    assert paper.total_steps > complete.total_steps == additions.STEPS
    flops = [c.total_steps * forward_flops(c, "cpu", t2i) for c in (complete, paper)]
    assert flops[1] == pytest.approx(flops[0], rel=1 / paper.total_steps)


def test_each_addition_is_tested_alone_and_left_out():
    fields = {field.name: field.default for field in dataclasses.fields(TemporalConfig)}
    switches = {name for name, default in fields.items() if default is False}
    assert switches == set(additions.ADDITIONS)
    for name in switches:
        for variant, expected in ((f"only_{name}", {name}), (f"without_{name}", switches - {name})):
            temporal = additions.get_config(f"{variant},0").temporal
            assert {switch for switch in switches if temporal[switch]} == expected
    for variant, optimizer in (("paper_long", "muon"), ("paper_adafactor_long", "adafactor")):
        config = additions.get_config(f"{variant},1")
        assert not any(config.temporal[switch] for switch in switches)
        assert (config.optimizer.name, config.total_steps) == (optimizer, additions.LONG_STEPS)


@pytest.mark.parametrize(("scale", "end"), [("cpu", ""), ("tpu", ",tpu")])
def test_kinds_of_blocks_are_compared_at_equal_parameters(scale, end):
    added = [
        num_added(temporal_blocks.get_config(f"{variant},0{end}"), scale)
        for variant in temporal_blocks.ABLATION.variants
    ]
    np.testing.assert_allclose(added, added[0], rtol=0.01)


def test_the_lowest_variants_are_named():
    losses = {
        "factorised": np.array([1, 2]),
        "conv3d": np.array([2, 1]),
        "conv1d": np.array([3, 3]),
    }
    verdict = trained.rank_variants(losses)
    assert (
        verdict.startswith("factorised ends lowest; conv3d comes next")
        and "not in every" in verdict
    )


@pytest.mark.parametrize("argument", ["he", "xavier,0", "he,first", "he,0,pod", "he,0,tpu,1"])
def test_an_unknown_run_is_refused(argument):
    with pytest.raises(UserError) as caught:
        resampler_init.get_config(argument)
    assert f"{argument!r}" in str(caught.value)
    assert "VARIANT,SEED[,tpu]" in str(caught.value) and "identity, he" in str(caught.value)


def test_a_run_at_a_scale_that_an_ablation_does_not_have_is_refused():
    with pytest.raises(UserError, match=r"'two,0'.*VARIANT,SEED,tpu .*two, one, four"):
        attention_depth.get_config("two,0")
    with pytest.raises(UserError, match=r"'keys,0,tpu'.*VARIANT,SEED .*space_time, keys, between"):
        key_frames.get_config("keys,0,tpu")


def unfinished(ablation, workdir):
    """Returns the commands at a TPU's scale that have no result, by their results' folders."""
    inputs = {name: name.upper() for name in ablation.inputs("tpu")}
    commands = list_commands(ablation.phases(workdir, inputs, [], "tpu"))
    return {c.result.parent: c.text for c in commands if not c.result.exists()}


def test_windows_of_all_lengths_have_the_same_number_of_frames_per_step():
    for variant in window_length.ABLATION.variants:
        config = window_length.get_config(f"{variant},0,tpu")
        assert config.data.num_frames == int(variant)
        assert config.batch_size * config.data.num_frames == 64 * 8


def test_at_a_tpus_scale_commands_are_printed_and_finished_runs_reported(tmp_path):
    def run_program(only):
        flags = ["--scale=tpu", f"--only={only}", f"--workdir={tmp_path}"]
        command = [sys.executable, "-m", "experiments.ablations", *flags]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    commands = unfinished(attention_depth.ABLATION, tmp_path / "attention_depth")
    folders = [
        tmp_path / "paper_0",
        *(tmp_path / "attention_depth" / f"{n}_0" for n in ("one", "four")),
    ]
    assert list(commands) == folders
    assert commands[folders[1]] == (
        "python -m experiments.train "
        "--config=experiments/ablations/attention_depth.py:one,0,tpu --config.init_from=T2I "
        f"--config.data.source=FOLDER --workdir={tmp_path}/attention_depth/one_0"
    )
    for loss, workdir in enumerate(folders, start=1):
        workdir.mkdir(parents=True)
        rows = [("step", "loss", "grad_norm"), *((step, loss / 8, 1.0) for step in range(1, 41))]
        with (workdir / "metrics.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        commands = unfinished(attention_depth.ABLATION, tmp_path / "attention_depth")
        assert list(commands) == folders[loss - 1 :]
        (workdir / "DONE").touch()
    assert run_program("attention_depth").stdout == f"{tmp_path / 'ablations.md'}\n"
    lines = run_program("resampler_init").stdout.splitlines()
    assert len(lines) == 2 and "resampler_init.py:he,0,tpu" in lines[0]  # paper_0 is finished
    report = (tmp_path / "ablations.md").read_text()
    assert "Ours: two ends lowest; one comes next" in report
    assert "| four | 40 | 0.3750 |\n" in report and "judge" not in report.lower()
    refused = run_program("style_strength")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "--only" in line and "'style_strength'" in line and "resampler_init, " in line


def test_the_ablation_on_ucf101_needs_the_dataset(tmp_path):
    flags = ["--only=resampler_init_ucf101", f"--workdir={tmp_path}"]
    command = [sys.executable, "-m", "experiments.ablations", *flags]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "--ucf101" in line and "resampler_init_ucf101" in line
    assert resampler_init_ucf101.ABLATION.inputs("cpu") == ("t2i", "ucf101")


def write_upscaling(flags):
    ratios = {"without": 2.5, "uniform": 1.2, "ramp": 1.05}
    report = {
        method: {"seam_ratio": [ratio + 0.01 * int(flags["--seed"]), 0, 9], "psnr": 27.0}
        for method, ratio in ratios.items()
    }
    report["settings"] = {"num_clips": int(flags["--num_clips"])}
    Path(f"{flags['--out']}.json").write_text(json.dumps(report))


def write_frames(flags):
    runs = [
        {
            "way": method,
            "frames": frames,
            "calls": 1,
            "seconds": seconds * frames / 32,
            "temporary_bytes": frames * 2**20 * (2 if method == "full rate" else 1),
        }
        for frames in (16, 32)
        for method, seconds in {"space-time": 1.0, "full rate": 1.5, "cascade": 3.0}.items()
    ]
    Path(flags["--out"]).write_text(json.dumps({"runs": runs}))


def write_key_frames_clips(flags):
    workdir, seed = Path(flags["--workdir"]), int(flags["--seed"])
    scores = {"space_time": 0.8, "cascade": 0.5 + 0.2 * seed, "between": 0.7, "true": 0.9}
    report = {method: {"periodicity": s, "motion": s} for method, s in scores.items()}
    (workdir / f"seed_{seed}.json").write_text(json.dumps({**report, "num_clips": 8}))


def write_judge(flags):
    report = {"colour": 1.0, "shape": 0.5, "motion": 0.25, "num_clips": 64}
    Path(f"{flags['--out']}.json").write_text(json.dumps(report))


def write_denoising(flags):
    loss = 1.0 + 0.25 * ("/he_" in flags["--model"]) + 0.01 * int(flags["--model"][-1])
    report = {"errors": {"own": [loss - 1, loss + 1], "motion": [2 * loss, 2 * loss]}}
    Path(f"{flags['--out']}.json").write_text(json.dumps(report))


def write_applications(flags):
    style = {
        "strength": [0.0, 0.5, 1.0],
        "distance_to_the_inks": [0.6, 0.4, 0.2],
        "motion_energy_share": [1.0, 0.8, 0.9 + 0.01 * int(flags["--seed"])],
    }
    Path(f"{flags['--out']}.json").write_text(json.dumps({"style": style}))


def write_training(flags):
    variant, seed = flags["--config"].rsplit(":", 1)[1].split(",")
    out = Path(flags["--workdir"])
    out.mkdir(parents=True)
    loss = 1.0 + 0.25 * (variant == "he") + 0.01 * int(seed)
    with (out / "metrics.csv").open("w", newline="") as file:
        rows = ((step, loss + (step <= 36), 1.0) for step in range(1, STEPS + 1))
        csv.writer(file).writerows([("step", "loss", "grad_norm"), *rows])
    for step in (10, 40):
        shade = np.full((256, 256, 3), 1 - step / 20 if variant == "he" else -1, np.float32)
        write_image(out / "samples" / f"step_{step:06d}.png", shade)
    (out / "DONE").touch()


PROGRAMS = {
    "experiments.train": write_training,
    "experiments.judge": write_judge,
    "experiments.denoising": write_denoising,
    "experiments.upscaling": write_upscaling,
    "experiments.applications": write_applications,
    "experiments.benchmarks.frames": write_frames,
    "experiments.ablations.key_frames_clips": write_key_frames_clips,
}


@pytest.fixture
def calls(monkeypatch):
    """Replaces all programs by functions that write their results; returns (program, flags) each.

    The loss of He is 0.25 higher than that of the identity, and 0.01 higher with each seed.
    """
    calls = []

    def call(command, log, running):
        program, flags = command[2], dict(flag.split("=", 1) for flag in command[3:])
        calls.append((program, flags))
        if "--config.batch_size" in flags:
            log.write("loss is nan\nlower the rate\n")
            return 2
        PROGRAMS[program](flags)
        return 0

    monkeypatch.setattr(harness, "run_process", call)
    return calls


def test_runs_once_and_reports_the_results(tmp_path, calls):
    ablation, inputs = resampler_init.ABLATION, {"t2i": tmp_path / "t2i"}
    harness.run(ablation, tmp_path / "runs", inputs, ["--config.log_every=5"], jobs=2)
    training = [flags for program, flags in calls if program == "experiments.train"]
    assert len(training) == 6 and len(calls) == 18
    assert {flags["--config"].rsplit(":", 1)[1] for flags in training} == {
        f"{variant},{seed}" for variant in ("identity", "he") for seed in (0, 1, 2)
    }
    assert {Path(flags["--config"].rsplit(":", 1)[0]) for flags in training} == {
        Path(resampler_init.__file__)
    }
    assert {flags["--config.init_from"] for flags in training} == {str(tmp_path / "t2i")}
    assert {flags["--config.log_every"] for flags in training} == {"5"}
    harness.run(ablation, tmp_path / "runs", inputs, jobs=2)
    assert len(calls) == 18

    results = trained.read_results(ablation, tmp_path / "runs")
    np.testing.assert_allclose(results["he"]["loss"], [1.25, 1.26, 1.27])
    assert results["identity"]["curves"].shape == (3, STEPS)
    text = ablation.report(tmp_path / "runs", "cpu")
    assert "identity ends lower with every seed" in text
    ends = "1.2500, 1.2600, 1.2700 | 1.2500, 1.2600, 1.2700 | 1.2600 ± 0.0248 | 100.0 ± 0.0 %"
    assert f"| he | 40 | {ends} | 100 % | 50 % | 25 % |" in text
    assert (tmp_path / "runs.png").stat().st_size > 5000
    early = read_video(tmp_path / "runs_early.png")[0][0]
    assert early.shape == (256 + 12 + 256, 256, 3)
    assert [round(float(early[row].mean()), 1) for row in (0, 260, 400)] == [-1.0, 1.0, 0.5]
    reversed_losses = {"identity": np.array([1, 3, 3.0]), "he": np.array([2, 2, 2.0])}
    assert "lower with 1 of 3" in ablation.verdict(reversed_losses)


def test_significant_changes_are_marked():
    losses = {name: np.array([1.0, 2.0, 4.0]) for name in additions.ABLATION.variants}
    losses["only_relative"] = 0.9 * losses["paper"]
    losses["without_relative"] = losses["all"] * [1.2, 1.0, 0.8]
    text = additions.ABLATION.verdict(losses)
    assert "only_relative -10.0 ± 0.0 % (significant)" in text
    assert "only_feed_forward +0.0 ± 0.0 %," in text
    # The standard deviation is 0.2; Student's t with 2 degrees of freedom is 4.303.
    assert f"without_relative +0.0 ± {100 * 4.3027 * 0.2 / 3**0.5:.1f} %." in text


def test_runs_on_ucf101_are_compared_by_their_losses_only(tmp_path, calls):
    ablation = resampler_init_ucf101.ABLATION
    harness.run(ablation, tmp_path / "ucf", {"t2i": tmp_path, "ucf101": "S"})
    assert {program for program, _ in calls} == {"experiments.train"} and len(calls) == 6
    assert {flags["--config.data.source"] for _, flags in calls} == {"S"}
    text = ablation.report(tmp_path / "ucf", "cpu")
    assert "On UCF-101" in text and "identity ends lower with every seed" in text
    assert "| he | 40 | 1.2500, 1.2600, 1.2700 |\n" in text and "ucf_early.png" in text
    config = resampler_init_ucf101.get_config("he,1")
    assert config.data.name == "ucf101" and config.temporal.resampler_init == "he"


def test_the_error_of_a_failed_run_has_its_program_exit_code_last_line_and_log(tmp_path, calls):
    with pytest.raises(UserError, match=r"experiments\.train.* 2, lower the rate .*_0\.log"):
        harness.run(
            resampler_init.ABLATION,
            tmp_path / "runs",
            {"t2i": tmp_path},
            ["--config.batch_size=0"],
        )


def test_multidiffusion_reports_the_seams_of_each_seed(tmp_path, calls):
    ablation, workdir = multidiffusion.ABLATION, tmp_path / "windows"
    for _ in range(2):
        harness.run(ablation, workdir, {"ssr": tmp_path / "ssr"}, ["--steps=2"])
    assert [flags["--seed"] for _, flags in calls] == ["0", "1", "2"]
    assert all(flags["--steps"] == "2" for _, flags in calls)
    text = ablation.report(workdir, "cpu")
    assert "Ours: Agrees" in text and "removes" in text and "2.51 to 1.06" in text
    assert "| with, ramp weights | 1.050, 1.060, 1.070 | 27.0 |" in text


@pytest.mark.parametrize(
    ("without", "ramp", "verdict", "number"),
    [
        (1.05, 1.0, "Does not confirm", "1.05"),
        (1.3, 1.4, "Disagrees", "1.40"),
        (2.0, 1.3, "reduces", "1.30"),
    ],
)
def test_a_verdict_follows_the_ratios(without, ramp, verdict, number):
    ratios = {"without": without, "uniform": 1.5, "ramp": ramp}
    text = multidiffusion.verdict({method: np.array([r]) for method, r in ratios.items()})
    assert verdict in text and number in text


def test_style_strength_reports_colours_and_motion(tmp_path, calls):
    ablation, workdir = style_strength.ABLATION, tmp_path / "style"
    for _ in range(2):
        harness.run(ablation, workdir, {"t2v": tmp_path / "t2v", "style": tmp_path / "duotone"})
    assert [flags["--seed"] for _, flags in calls] == ["0", "1", "2"]
    text = ablation.report(workdir, "cpu")
    assert "Colours approach" in text and "91 %" in text and "not static" in text
    assert "| 1 | 0.200, 0.200, 0.200 | 0.900, 0.910, 0.920 |" in text
    still = style_strength.verdict(
        np.array([0, 0.5, 1]), np.array([[0.6, 0.3, 0.4]]), np.array([[1, 0.8, 0.2]])
    )
    assert still.startswith("Colours do not approach") and "20 %" in still
    assert still.endswith("static, as in the paper.")


def test_cost_reports_each_method_here_and_by_the_tpu_compiler(tmp_path, calls, monkeypatch):
    ablation, workdir, compilers = cost.ABLATION, tmp_path / "cost", []
    monkeypatch.setattr(cost.importlib.util, "find_spec", lambda name: compilers or None)
    harness.run(ablation, workdir, {}, ["--repeats=1"])
    assert [flags.get("--topology") for _, flags in calls] == [None]
    assert "requirements-tpu.txt" in ablation.report(workdir, "cpu")
    compilers.append("libtpu")
    harness.run(ablation, workdir, {}, ["--repeats=1"])  # does not measure again
    assert [flags.get("--topology") for _, flags in calls] == [None, cost.TOPOLOGY]
    text = ablation.report(workdir, "cpu")
    assert text.count("At 32 frames the full rate takes 1.50 times the time and 2.00 times") == 2
    assert "a cascade 3.00 and 1.00 times" in text
    assert "| 16 | full rate | 1 | 32.0 | 0.75 |" in text
    assert "requirements-tpu.txt" not in text


def test_a_cascade_is_every_fourth_frame_and_windows_between():
    assert program_calls("space-time", UNET, 64) == [ProgramCall(UNET, 64, 1)]
    keys, between = program_calls("cascade", UNET, 64)
    assert (keys.frames, keys.count, between.frames, between.count) == (16, 1, 16, 5)
    assert keys.unet.temporal.resample == between.unet.temporal.resample == (False,)
    assert (keys.unet.cond_channels, between.unet.cond_channels) == (0, 4)


def test_the_cascade_is_trained_keys_first_and_compared_seed_by_seed(tmp_path, calls):
    shapes, workdir = shipped.FOLDER / shipped.VIDEO_MODEL, tmp_path / "keys"
    for _ in range(2):
        inputs = {"t2v": shapes}
        harness.run(key_frames.ABLATION, workdir, inputs, ["--config.log_every=5"], jobs=2)
    starts = {
        flags["--config"].rsplit(":", 1)[1]: flags["--config.init_from"]
        for program, flags in calls
        if program == "experiments.train"
    }
    assert len(calls) == 9 + 3 and len(starts) == 9
    assert starts["space_time,1"] == str(shapes)
    assert starts["keys,1"] == str(workdir / "full_rate")
    assert starts["between,1"] == str(workdir / "keys_1")
    assert {program for program, _ in calls[-3:]} == {"experiments.ablations.key_frames_clips"}
    text = key_frames.ABLATION.report(workdir, "cpu")
    assert "Does not confirm" in text and "2 of 3" in text
    assert "| key frames, then between | 0.500, 0.700, 0.900 | 70 % |" in text


def test_networks_of_both_methods_train_on_as_many_frames_and_steps():
    configs = {name: key_frames.get_config(f"{name},1") for name in key_frames.NETWORKS}
    seconds = {}
    for name, values in configs.items():
        config = parse_train_config(values.to_dict(), parse_config)
        data = config.data
        seconds[name] = (data.clip_frames or data.num_frames) / data.fps
        assert data.num_frames * config.batch_size == 64
        assert data.motions == key_frames.MOTIONS and data.seed == 1
    assert seconds == dict.fromkeys(configs, 4.0)
    assert configs["between"].stage == "conditional" and configs["between"].data.num_frames == 8
    assert configs["keys"].temporal.resample == (False, False)
    steps = {name: config.total_steps for name, config in configs.items()}
    assert steps["space_time"] == steps["keys"] + steps["between"]


def test_a_cascade_starts_from_the_weights_without_temporal_resampling():
    start = read_model_folder(shipped.FOLDER / shipped.VIDEO_MODEL)
    full = key_frames.remove_temporal_resampling(start)
    unet = from_dict(UNetConfig, full.config["architecture"], "architecture")
    assert unet.temporal.resample == (False, False) and unet.temporal.relative
    before, after = flatten(start.params["unet"]), flatten(full.params["unet"])
    left_out = {path.rsplit("/", 2)[0] for path in before.keys() - after.keys()}
    assert left_out == {"temporal_down_0_resample", "temporal_up_1_resample"}
    assert all(after[path] is before[path] for path in after)
