"""Ablations: their configs, and what becomes of runs, which are written down here, not trained."""

import csv
import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.ablations import (
    attention_depth,
    cost,
    frozen_image_model,
    key_frames,
    multidiffusion,
    programs,
    resampler_init,
    resampler_init_ucf101,
    style_strength,
    temporal_blocks,
    temporal_resampling,
    training,
    window_length,
)
from experiments.benchmarks.harness.workloads import ProgramCall, program_calls
from experiments.common.flops import model_flops
from experiments.common.networks import IF_M
from experiments.configs import tiny_t2i
from experiments.tpu.programs import laid_out
from stunet.errors import UserError
from stunet.models.temporal import TemporalConfig
from stunet.models.unet import UNet, UNetConfig, init_unet
from stunet.schema import from_dict
from stunet.training.config import TrainConfig
from stunet.video_io import read_video, write_image
from stunet.weights import shipped
from stunet.weights.model_folder import read_model_folder
from stunet.weights.trees import flatten, is_temporal
from tests.tiny import UNET

STEPS = 40
ASKED = {
    attention_depth: "temporal",
    frozen_image_model: "trained",
    resampler_init: "temporal",
    resampler_init_ucf101: "temporal",
    temporal_resampling: "temporal",
    temporal_blocks: "temporal",
    window_length: "batch_size",
}
CASES = [(m, scale) for m in ASKED for scale in m.ABLATION.scales]


@pytest.mark.parametrize(("module", "scale"), CASES)
def test_variants_differ_in_what_is_asked_and_seeds_in_nothing_else(module, scale):
    ablation, asked = module.ABLATION, ASKED[module]
    assert f"experiments.ablations.{ablation.name}" == module.__name__
    end = "" if scale == "cpu" else ",tpu"
    configs = {
        (variant, seed): module.get_config(f"{variant},{seed}{end}").to_dict()
        for variant in ablation.variants
        for seed in (0, 2)
    }
    runs = {run: from_dict(TrainConfig, said, ablation.name) for run, said in configs.items()}
    one, other, *_ = ablation.variants
    base = from_dict(TrainConfig, training.base_config(0, scale).to_dict(), "base")
    assert ablation.shared == (runs[one, 0] == base)
    paper, changed = configs[one, 0], configs[other, 0]
    assert paper[asked] != changed[asked]
    again = configs[one, 2]
    assert (again["seed"], again["data"]["seed"]) == (2, 2)
    for said in (changed, again):
        for name in (asked, "total_steps", "optimizer", "seed", "data"):
            del said[name]
    assert changed == {name: paper[name] for name in changed}
    assert again == changed


def network(config, scale):
    """The network of a run's config, its parameters' shapes, and tokens of a caption."""
    if scale == "cpu":
        image, tokens = from_dict(UNetConfig, tiny_t2i.get_config().unet.to_dict(), "unet"), 20
    else:
        image, tokens = laid_out(IF_M, config.data.resolution), 77
    temporal = from_dict(TemporalConfig, config.temporal.to_dict(), "temporal")
    unet = dataclasses.replace(image, temporal=temporal)
    return unet, jax.eval_shape(lambda: init_unet(unet, jax.random.key(0))), tokens


def forward_flops(config, scale):
    unet, params, tokens = network(config, scale)
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
    verdict = training.ranking(losses)
    assert (
        verdict.startswith("factorised ends lowest; conv3d comes next")
        and "not in every" in verdict
    )


@pytest.mark.parametrize("argument", ["he", "xavier,0", "he,first", "he,0,pod", "he,0,tpu,1"])
def test_what_is_no_variant_is_refused(argument):
    with pytest.raises(UserError, match="no variant and seed; write one of identity, he"):
        resampler_init.get_config(argument)
    with pytest.raises(UserError, match="one of two, one, four, a comma and a number and ,tpu"):
        attention_depth.get_config("two,0")


def test_at_a_tpus_scale_windows_of_any_length_come_to_as_many_frames_a_step():
    for variant in window_length.ABLATION.variants:
        config = window_length.get_config(f"{variant},0,tpu")
        assert config.data.num_frames == int(variant)
        assert config.batch_size * config.data.num_frames == 64 * 8


def test_at_a_tpus_scale_commands_are_said_and_finished_runs_reported(tmp_path):
    def ablations(only):
        flags = ["--scale=tpu", f"--only={only}", f"--workdir={tmp_path}"]
        command = [sys.executable, "-m", "experiments.ablations", *flags]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    said = training.missing(attention_depth.ABLATION, tmp_path / "attention_depth")
    folders = [
        tmp_path / "paper_0",
        *(tmp_path / "attention_depth" / f"{n}_0" for n in ("one", "four")),
    ]
    assert list(said) == folders
    assert said[folders[1]] == (
        "python -m experiments.train "
        "--config=experiments/ablations/attention_depth.py:one,0,tpu --config.init_from=T2I "
        f"--config.data.source=FOLDER --workdir={tmp_path}/attention_depth/one_0"
    )
    for loss, workdir in enumerate(folders, start=1):
        workdir.mkdir(parents=True)
        rows = [("step", "loss", "grad_norm"), *((step, loss / 8, 1.0) for step in range(1, 41))]
        with (workdir / "metrics.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        left = training.missing(attention_depth.ABLATION, tmp_path / "attention_depth")
        assert list(left) == folders[loss - 1 :]
        (workdir / "DONE").touch()
    assert ablations("attention_depth").stdout == f"{tmp_path / 'ablations.md'}\n"
    others = ablations("resampler_init").stdout.splitlines()
    assert len(others) == 2 and "resampler_init.py:he,0,tpu" in others[0]  # the paper's is there
    report = (tmp_path / "ablations.md").read_text()
    assert "Ours: two ends lowest; one comes next" in report
    assert "| four | 40 | 0.3750 |\n" in report and "judge" not in report.lower()
    refused = ablations("style_strength")
    assert refused.returncode == 2
    assert "--only=style_strength: choose one of resampler_init, " in refused.stderr


@pytest.fixture
def written(monkeypatch):
    """Commands that write their files at once; He's loss is 0.25 higher, a seed's 0.01 a number."""
    calls = []

    def call(command, stdout, **_):
        flags = dict(flag.split("=", 1) for flag in command[3:])
        calls.append((command[2], flags))
        if command[2] == "experiments.upscaling":
            report = {
                way: {"seam_ratio": [ratio + 0.01 * int(flags["--seed"]), 0, 9], "psnr": 27.0}
                for way, ratio in {"without": 2.5, "uniform": 1.2, "ramp": 1.05}.items()
            }
            report["settings"] = {"num_clips": int(flags["--num_clips"])}
            with open(f"{flags['--out']}.json", "w") as file:
                json.dump(report, file)
            return subprocess.CompletedProcess(command, 0)
        if command[2] == "experiments.benchmarks.frames":
            seconds = {"space-time": 1.0, "full rate": 1.5, "cascade": 3.0}
            runs = [
                {
                    "way": way,
                    "frames": frames,
                    "calls": 1,
                    "seconds": s * frames / 32,
                    "temporary_bytes": frames * 2**20 * (2 if way == "full rate" else 1),
                }
                for frames in (16, 32)
                for way, s in seconds.items()
            ]
            with open(flags["--out"], "w") as file:
                json.dump({"runs": runs}, file)
            return subprocess.CompletedProcess(command, 0)
        if command[2] == "experiments.ablations.key_frames_clips":
            workdir, seed = programs.Path(flags["--workdir"]), int(flags["--seed"])
            scores = {
                "space_time": 0.8,
                "cascade": 0.5 + 0.2 * seed,
                "between": 0.7,
                "true": 0.9,
            }
            report = {way: {"periodicity": s, "motion": s} for way, s in scores.items()}
            (workdir / f"seed_{seed}.json").write_text(json.dumps({**report, "num_clips": 8}))
            return subprocess.CompletedProcess(command, 0)
        if command[2] == "experiments.judge":
            report = {"colour": 1.0, "shape": 0.5, "motion": 0.25, "num_clips": 64}
            with open(f"{flags['--out']}.json", "w") as file:
                json.dump(report, file)
            return subprocess.CompletedProcess(command, 0)
        if command[2] == "experiments.denoising":
            loss = 1.0 + 0.25 * ("/he_" in flags["--model"]) + 0.01 * int(flags["--model"][-1])
            with open(f"{flags['--out']}.json", "w") as file:
                json.dump({"errors": {"own": [loss - 1, loss + 1], "none": [9.0, 9.0]}}, file)
            return subprocess.CompletedProcess(command, 0)
        if command[2] == "experiments.applications":
            energies = [1.0, 0.8, 0.9 + 0.01 * int(flags["--seed"])]
            names = ("strength", "distance_to_the_inks", "motion_energy_share")
            values = ([0.0, 0.5, 1.0], [0.6, 0.4, 0.2], energies)
            with open(f"{flags['--out']}.json", "w") as file:
                json.dump({"style": dict(zip(names, values, strict=True))}, file)
            return subprocess.CompletedProcess(command, 0)
        variant, seed = flags["--config"].rsplit(":", 1)[1].split(",")
        if "--config.batch_size" in flags:
            stdout.write("loss is nan\nlower the rate\n")
            return subprocess.CompletedProcess(command, 2)
        out = training.Path(flags["--workdir"])
        out.mkdir(parents=True)
        loss = 1.0 + 0.25 * (variant == "he") + 0.01 * int(seed)
        with (out / "metrics.csv").open("w", newline="") as file:
            rows = ((step, loss + (step <= 36), 1.0) for step in range(1, STEPS + 1))
            csv.writer(file).writerows([("step", "loss", "grad_norm"), *rows])
        for step in (10, 40):
            shade = np.full((256, 256, 3), 1 - step / 20 if variant == "he" else -1, np.float32)
            write_image(out / "samples" / f"step_{step:06d}.png", shade)
        (out / "DONE").touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(programs.subprocess, "run", call)
    return calls


def test_runs_once_and_reports_what_the_runs_say(tmp_path, written):
    ablation = resampler_init.ABLATION
    start = functools.partial(training.run, ablation, tmp_path / "runs", tmp_path / "t2i", jobs=2)
    start(options=["--config.log_every=5"])
    trained = [flags for program, flags in written if program == "experiments.train"]
    assert len(trained) == 6 and len(written) == 18
    assert {flags["--config"].rsplit(":", 1)[1] for flags in trained} == {
        f"{variant},{seed}" for variant in ("identity", "he") for seed in (0, 1, 2)
    }
    assert {flags["--config.init_from"] for flags in trained} == {str(tmp_path / "t2i")}
    assert {flags["--config.log_every"] for flags in trained} == {"5"}
    start()
    assert len(written) == 18

    found = training.results(ablation, tmp_path / "runs")
    np.testing.assert_allclose(found["he"]["loss"], [1.25, 1.26, 1.27])
    assert found["identity"]["curves"].shape == (3, STEPS)
    text = training.section(ablation, tmp_path / "runs")
    assert "identity ends lower with every seed" in text
    ends = "1.2500, 1.2600, 1.2700 | 1.2500, 1.2600, 1.2700"
    assert f"| he | 40 | {ends} | 100 % | 50 % | 25 % |" in text
    assert (tmp_path / "runs.png").stat().st_size > 5000
    early = read_video(tmp_path / "runs_early.png")[0][0]
    assert early.shape == (256 + 12 + 256, 256, 3)
    assert [round(float(early[row].mean()), 1) for row in (0, 260, 400)] == [-1.0, 1.0, 0.5]
    reversed_losses = {"identity": np.array([1, 3, 3.0]), "he": np.array([2, 2, 2.0])}
    assert "lower with 1 of 3" in ablation.verdict(reversed_losses)


def test_runs_on_real_clips_are_compared_by_their_losses_alone(tmp_path, written):
    ablation = resampler_init_ucf101.ABLATION
    training.run(ablation, tmp_path / "ucf", tmp_path, jobs=1, options=["--config.data.source=S"])
    assert {program for program, _ in written} == {"experiments.train"} and len(written) == 6
    assert {flags["--config.data.source"] for _, flags in written} == {"S"}
    text = training.section(ablation, tmp_path / "ucf")
    assert "On UCF-101" in text and "identity ends lower with every seed" in text
    assert "| he | 40 | 1.2500, 1.2600, 1.2700 |\n" in text and "ucf_early.png" in text
    config = resampler_init_ucf101.get_config("he,1")
    assert config.data.name == "ucf101" and config.temporal.resampler_init == "he"


def test_a_failed_run_is_named_with_its_last_line(tmp_path, written):
    with pytest.raises(UserError, match=r"experiments.train ended with 2: lower the rate \(all of"):
        training.run(
            resampler_init.ABLATION,
            tmp_path / "runs",
            tmp_path,
            jobs=1,
            options=["--config.batch_size=0"],
        )


def test_multidiffusion_reports_the_seams_of_each_seed(tmp_path, written):
    for _ in range(2):
        multidiffusion.run(tmp_path / "windows", tmp_path / "ssr", ["--steps=2"])
    assert [flags["--seed"] for _, flags in written] == ["0", "1", "2"]
    assert all(flags["--steps"] == "2" for _, flags in written)
    text = multidiffusion.section(tmp_path / "windows")
    assert "Agrees with the paper: seams of 2.51 are gone with it (1.06)" in text
    assert "| with, ramp weights | 1.050, 1.060, 1.070 | 27.0 |" in text


@pytest.mark.parametrize(
    ("without", "ramp", "said"),
    [(1.05, 1.0, "Does not bear"), (1.3, 1.4, "Disagrees"), (2.0, 1.3, "are less with it (1.30)")],
)
def test_a_verdict_follows_the_ratios(without, ramp, said):
    ratios = {"without": without, "uniform": 1.5, "ramp": ramp}
    assert said in multidiffusion.verdict({way: np.array([r]) for way, r in ratios.items()})


def test_style_strength_reports_colours_and_motion(tmp_path, written):
    for _ in range(2):
        style_strength.run(tmp_path / "style", tmp_path / "t2v", tmp_path / "look")
    assert [flags["--seed"] for _, flags in written] == ["0", "1", "2"]
    text = style_strength.section(tmp_path / "style")
    assert "Colours move to the style's all the way; at strength 1 clips keep 91 %" in text
    assert "not static, unlike the paper's" in text
    assert "| 1 | 0.200, 0.200, 0.200 | 0.900, 0.910, 0.920 |" in text
    still = style_strength.verdict(
        np.array([0, 0.5, 1]), np.array([[0.6, 0.3, 0.4]]), np.array([[1, 0.8, 0.2]])
    )
    assert still.startswith("Colours do not move steadily; at strength 1 clips keep 20 %")
    assert still.endswith("static, as in the paper.")


def test_cost_reports_each_way_here_and_by_the_tpu_compiler(tmp_path, written, monkeypatch):
    compiler = []
    monkeypatch.setattr(cost.importlib.util, "find_spec", lambda name: compiler or None)
    cost.run(tmp_path / "cost", ["--repeats=1"])
    assert [flags.get("--topology") for _, flags in written] == [None]
    assert "was not installed" in cost.section(tmp_path / "cost")
    compiler.append("libtpu")
    cost.run(tmp_path / "cost", ["--repeats=1"])  # what is there stays
    assert [flags.get("--topology") for _, flags in written] == [None, cost.TOPOLOGY]
    text = cost.section(tmp_path / "cost")
    assert text.count("At 32 frames the full rate takes 1.50 times the time and 2.00 times") == 2
    assert "a cascade 3.00 and 1.00 times" in text
    assert "| 16 | full rate | 1 | 32.0 | 0.75 |" in text


def test_a_cascade_is_every_fourth_frame_and_windows_between():
    assert program_calls("space-time", UNET, 64) == [ProgramCall(UNET, 64, 1)]
    keys, between = program_calls("cascade", UNET, 64)
    assert (keys.frames, keys.count, between.frames, between.count) == (16, 1, 16, 5)
    assert keys.unet.temporal.resample == between.unet.temporal.resample == (False,)
    assert (keys.unet.cond_channels, between.unet.cond_channels) == (0, 4)


def test_the_cascade_is_trained_keys_first_and_compared_seed_by_seed(tmp_path, written):
    shapes = shipped.FOLDER / shipped.VIDEO_MODEL
    for _ in range(2):
        key_frames.run(tmp_path / "keys", shapes, ["--config.log_every=5"], jobs=2)
    trained = {
        flags["--config"].rsplit(":", 1)[1]: flags["--config.init_from"]
        for program, flags in written
        if program == "experiments.train"
    }
    assert len(written) == 9 + 3 and len(trained) == 9
    assert trained["space_time,1"] == str(shapes)
    assert trained["keys,1"] == str(tmp_path / "keys" / "full_rate")
    assert trained["between,1"] == str(tmp_path / "keys" / "keys_1")
    text = key_frames.section(tmp_path / "keys")
    assert (
        "Does not bear the paper out: in one pass clips repeat themselves more with 2 of 3" in text
    )
    assert "| key frames, then between | 0.500, 0.700, 0.900 | 70 % |" in text


def test_networks_of_both_ways_see_as_many_frames_and_take_as_many_steps():
    configs = {name: key_frames.get_config(f"{name},1") for name in key_frames.NETWORKS}
    seconds = {}
    for name, said in configs.items():
        config = from_dict(TrainConfig, said.to_dict(), "config")
        data = config.data
        seconds[name] = data.get("clip_frames", data["num_frames"]) / data["fps"]
        assert data["num_frames"] * config.batch_size == 64
        assert tuple(data["motions"]) == key_frames.MOTIONS and data["seed"] == 1
    assert seconds == dict.fromkeys(configs, 4.0)
    assert configs["between"].stage == "conditional" and configs["between"].data.num_frames == 8
    assert configs["keys"].temporal.resample == (False, False)
    steps = {name: config.total_steps for name, config in configs.items()}
    assert steps["space_time"] == steps["keys"] + steps["between"]


def test_what_a_cascade_starts_from_has_learnt_all_but_to_resample():
    start = read_model_folder(shipped.FOLDER / shipped.VIDEO_MODEL)
    full = key_frames.at_full_rate(start)
    unet = from_dict(UNetConfig, full.config["architecture"], "architecture")
    assert unet.temporal.resample == (False, False) and unet.temporal.relative
    before, after = flatten(start.params["unet"]), flatten(full.params["unet"])
    left_out = {path.rsplit("/", 2)[0] for path in before.keys() - after.keys()}
    assert left_out == {"temporal_down_0_resample", "temporal_up_1_resample"}
    assert all(after[path] is before[path] for path in after)
