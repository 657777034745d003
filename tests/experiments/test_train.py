"""`experiments.train` in this process, mostly with a loss that costs nothing to compute."""

import dataclasses
import json
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from data import pipeline as data
from experiments import export, train
from experiments.tpu.programs import read_networks, train_program
from stunet.diffusion import SamplingDefaults, Threshold
from stunet.errors import UserError, run_command
from stunet.model import load
from stunet.training.logs.metrics import read_metrics
from stunet.training.program import build_program
from stunet.training.stages import TextToImage
from stunet.training.workdir.claim import claim_folder
from stunet.training.workdir.run_model import base_of, write_initial_model
from stunet.weights.bases import Base, stored_base
from stunet.weights.model_folder import read_model_folder, write_model_folder
from stunet.weights.trees import count_parameters, flatten, is_temporal, partition
from tests.experiments.runs import (
    changed,
    parameters,
    parse,
    start,
    train_here,
    write_config,
)

# ml_collections reads a config file by a call that Python means to remove.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def started(root, config, t2i_run):
    """A workdir before the first step of runs with `patch_loss`, to be copied."""
    ready = parse(config)
    captions = data.captions(data.prepare(ready.data))
    with pytest.MonkeyPatch.context() as monkeypatch:
        patch_loss(monkeypatch)
        write_initial_model(ready, root / "started" / "initial", lambda: captions)
    return root / "started"


def patch_loss(monkeypatch, nan_from=None, power=2):
    """Makes stage t2i train the output bias towards 1, with loss NaN from a position on."""

    def loss(stage, networks, diffusion, params, batch, seed):
        distance = jnp.mean((params["unet"]["conv_out"]["bias"] - 1) ** power)
        is_nan = jnp.zeros(4, bool) if nan_from is None else batch["position"] >= nan_from
        return jnp.where(is_nan, jnp.nan, distance)

    monkeypatch.setattr(TextToImage, "loss", loss)
    monkeypatch.setattr(
        TextToImage, "is_trained", lambda stage, path: path.startswith("unet/conv_out")
    )


def initial_model(config):
    config = parse(config)
    return config.stage.initial_model(config, config.data, captions=list)


def kept_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))


def test_nan_stops_with_its_steps_and_keeps_the_last_good_checkpoint(
    started, config, tmp_path, monkeypatch, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(started, workdir)
    config = changed(config, log_every=3, total_steps=12, checkpoint_every=4)
    patch_loss(monkeypatch, nan_from=6 * 4 + 1)  # in step 7
    assert run_command(lambda: train_here(config, workdir), "experiments.train") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch("experiments.train: error: .* 6 .* 7.* loss nan.*", error)
    assert [row["step"] for row in read_metrics(workdir / "metrics.csv")] == [1, 2, 3, 4, 5, 6]
    assert kept_steps(workdir) == [4] and not (workdir / "DONE").exists()
    assert export.main(["export", f"--workdir={workdir}"]) is None
    model = read_model_folder(workdir / "model")
    assert all(np.isfinite(leaf).all() for leaf in flatten(model.params).values())
    patch_loss(monkeypatch)  # the run resumes from that checkpoint
    assert train_here(config, workdir) == 0
    losses = [row["loss"] for row in read_metrics(workdir / "metrics.csv")]
    assert len(losses) == 12 and np.all(np.diff(losses) < 0)


def test_a_huge_learning_rate_diverges(started, config, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(started, workdir)
    patch_loss(monkeypatch, power=6)  # (1e9)^6 is beyond float32
    config = changed(config, optimizer={"learning_rate": 1e9, "warmup_steps": 0})
    with pytest.raises(UserError, match=r" 1 .* 2: .*inf"):
        train_here(config, workdir)


def test_truncated_captions_and_sample_prompts_are_warned_of(
    started, config, tmp_path, monkeypatch, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(started, workdir)
    patch_loss(monkeypatch, nan_from=0)
    prompts = ("a red circle", " ".join(["a red circle moving left"] * 3))
    with pytest.raises(UserError, match="loss nan"):
        train_here(changed(config, sample_prompts=prompts), workdir)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "truncated" in line]
    captions, samples = warnings
    assert re.search(r"config\.data: .* of 40 truncated to the 12 tokens", captions)
    assert re.search(r"config\.sample_prompts: 1 of 2 truncated to the 12 tokens", samples)


@pytest.fixture(scope="module")
def t2v(root, config, t2i_run):
    """A run of three steps that inflates the T2I model: config and workdir."""
    config = {name: config[name] for name in ("data", "diffusion", "log_every")} | {
        "stage": "t2v",
        "init_from": str(t2i_run[0]),
        "temporal": {"resample": (True,), "attention_layers": 1, "head_dim": 8},
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0},
        "batch_size": 2,
        "total_steps": 3,
        "sample_prompts": ("a red circle moving left",),
    }
    config = changed(config, data__num_frames=4)
    assert train_here(config, root / "t2v") == 0
    return config, root / "t2v"


def test_t2v_leaves_the_text_to_image_model_alone(t2v, t2i_run):
    t2i = flatten(read_model_folder(t2i_run[0] / "model").params)
    before, after = (parameters(t2v[1], name) for name in ("initial", "model"))
    assert before.keys() == after.keys() > t2i.keys()
    assert any(path.startswith("text_encoder/") for path in t2i)
    for path, leaf in after.items():
        if path in t2i:
            np.testing.assert_array_equal(leaf, t2i[path], err_msg=path)
        else:
            assert is_temporal(path)
            assert not np.array_equal(leaf, before[path]), path


def test_t2v_goes_on_with_an_inflated_model_at_more_frames(t2v):
    config = changed(t2v[0], init_from=str(t2v[1]), data__num_frames=8)
    started = initial_model(config)
    assert started.config["num_frames"] == 8 != t2v[0]["data"]["num_frames"]
    assert started.config["sampling"] == read_model_folder(t2v[1] / "model").config["sampling"]
    before = flatten(read_model_folder(t2v[1] / "model").params)
    assert flatten(started.params).keys() == before.keys()
    for path, leaf in flatten(started.params).items():
        np.testing.assert_array_equal(leaf, before[path], err_msg=path)


def test_frozen_kernels_in_bfloat16(t2v, t2i_run, root):
    """Initially, after resuming, and in the exported model; trained parameters are float32."""
    config = {**t2v[0], "frozen_dtype": "bfloat16", "frozen": ("conv_time",), "sample_prompts": ()}
    workdir = root / "t2v_bfloat16"
    assert train_here({**config, "total_steps": 2}, workdir) == 0
    (workdir / "DONE").unlink()
    assert train_here(config, workdir) == 0
    assert [row["step"] for row in read_metrics(workdir / "metrics.csv")] == [1, 2, 3]
    t2i = flatten(read_model_folder(t2i_run[0] / "model").params["unet"])
    initial, model = (
        {p.removeprefix("unet/"): x for p, x in parameters(workdir, f).items() if "unet/" in p}
        for f in ("initial", "model")
    )
    for folder in (initial, model):
        for path, leaf in folder.items():
            cast = path in t2i and leaf.ndim > 1
            assert leaf.dtype == ("bfloat16" if cast else "float32"), path
            if path in t2i:
                np.testing.assert_array_equal(leaf, t2i[path].astype(leaf.dtype), err_msg=path)
    same = {path for path in initial if np.array_equal(initial[path], model[path])}
    assert same == {path for path in initial if path in t2i or "/conv_time/" in path}
    assert same > t2i.keys()
    assert all(np.isfinite(row["loss"]) for row in read_metrics(workdir / "metrics.csv"))


def test_every_trained_parameter_has_gradients_and_no_other(t2i_run, t2v):
    """The optimizer state has moments of all trained parameters only, none of them zero."""
    for (workdir, step), is_trained in (
        ((t2i_run[0], "20"), lambda path: True),
        ((t2v[1], "3"), is_temporal),
    ):
        state = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / step / "state")
        trained, _ = partition(read_model_folder(workdir / "model").params, is_trained)
        shapes = {path: leaf.shape for path, leaf in flatten(trained).items()}
        for tree in (state["params"], state["ema"]):
            assert {path: leaf.shape for path, leaf in flatten(tree).items()} == shapes
        paths = jax.tree_util.tree_leaves_with_path(state["opt_state"])
        moments = {jax.tree_util.keystr(path): leaf for path, leaf in paths if leaf.ndim}
        assert len(moments) == 2 * len(shapes)
        assert sum(leaf.size for leaf in moments.values()) == 2 * count_parameters(trained)
        still = [path for path, leaf in moments.items() if not np.any(leaf)]
        # Softmax is invariant to a constant added to all logits, so key biases have no gradient.
        assert [path for path in still if "k']['bias" not in path] == []


def test_t2i_adapts_a_model_to_another_resolution(config, t2i_run, tmp_path, monkeypatch):
    def loss(stage, networks, diffusion, params, batch, seed):
        assert batch["video"].shape == (4, 1, 16, 16, 3)
        leaves = jax.tree.leaves(params["unet"])
        return jnp.broadcast_to(sum(jnp.mean((leaf - 1) ** 2) for leaf in leaves), 4)

    monkeypatch.setattr(TextToImage, "loss", loss)
    schedule = {"kind": "continuous_cosine", "log_snr_shift": -1.4}
    config = changed(
        {**config, "unet": None, "text_encoder": None, "init_from": str(t2i_run[0])},
        frozen=("conv_in",),
        diffusion={"prediction": "v", "schedule": schedule},
        data__resolution=16,
        total_steps=2,
    )
    workdir = tmp_path / "run"
    assert train_here({**config, "total_steps": 1}, workdir) == 0
    assert train_here(config, workdir) == 0  # resumes
    model = read_model_folder(workdir / "model")
    assert (model.config["stage"], model.config["resolution"]) == ("t2i", 16)
    assert model.config["schedule"].items() >= schedule.items()
    before = read_model_folder(t2i_run[0] / "model")
    assert model.tokenizer == before.tokenizer
    assert model.config["text_encoder"] == before.config["text_encoder"]
    before, after = flatten(before.params), flatten(model.params)
    same = {path for path in before if np.array_equal(before[path], after[path])}
    frozen = {path for path in before if "conv_in" in path or path.startswith("text_encoder/")}
    assert after.keys() == before.keys() > frozen == same

    with pytest.raises(UserError, match="diffusion.prediction: 'eps', expected 'v'"):
        initial_model(changed(config, diffusion__prediction="eps"))
    with pytest.raises(UserError, match="frozen: .*'conv_inn'"):
        initial_model({**config, "frozen": ("conv_inn",)})
    with pytest.raises(UserError, match="9x9"):
        initial_model(changed(config, data__resolution=9))


def test_super_resolution_is_trained_on_crops_of_windows_without_another_model(root, config):
    ssr = changed(
        config,
        stage="ssr",
        super_resolution={"factor": 2},
        sampling={"sampler": "ddim", "steps": 2},
        temporal={"resample": (True,), "attention_layers": 1, "head_dim": 8},
        unet__in_channels=6,
        unet__noise_level_embedding=True,
        unet__self_attention=False,
        data__num_frames=4,
        data__clip_frames=6,
        data__resolution=16,
        data__crop=8,
        optimizer={"learning_rate": 1e-2, "warmup_steps": 0},
        gradient_accumulation=2,
        total_steps=3,
        sample_videos=1,
    )
    assert train_here(ssr, root / "ssr") == 0
    before, after = (parameters(root / "ssr", name) for name in ("initial", "model"))
    still = [path for path, leaf in after.items() if np.array_equal(leaf, before[path])]
    # Softmax is invariant to a constant added to all logits, so key biases have no gradient.
    assert [path for path in still if "k/bias" not in path] == []
    assert any(path.startswith("text_encoder/") for path in after)
    with Image.open(root / "ssr" / "samples" / "step_000003.png") as sheet:
        width, height = sheet.size
    # Four frames side by side, each the bilinear one above the model's.
    assert width / height == pytest.approx((4 * 16 + 3) / 32)
    exported = load(root / "ssr")
    assert exported.sampling == SamplingDefaults("ddim", steps=2, guidance_scale=4.0)
    assert exported.threshold == Threshold()
    (root / "ssr" / "DONE").unlink()
    with pytest.raises(UserError, match=r"config.super_resolution.factor: 4, expected 2"):
        train_here(changed(ssr, super_resolution={"factor": 4}), root / "ssr")
    (root / "ssr" / "run.json").unlink()  # of an older version
    with pytest.raises(UserError, match=r"super_resolution.factor 2, .* 4"):
        train_here(changed(ssr, super_resolution={"factor": 4}), root / "ssr")


def test_a_stage_from_outside_the_package(root, t2v):
    config = {**t2v[0], "stage": "tests.training.external_stage:ModuleTuning", "total_steps": 2}
    config |= {"init_from": str(t2v[1]), "module": "conv_in"}
    del config["temporal"], config["sample_prompts"]
    assert train_here(config, root / "external") == 0
    model = read_model_folder(root / "external" / "model")
    assert model.config["stage"] == "module_tuning"
    before, after = (parameters(root / "external", name) for name in ("initial", "model"))
    trained = {path for path in after if not np.array_equal(after[path], before[path])}
    assert trained == {"unet/conv_in/kernel", "unet/conv_in/bias"}
    with pytest.raises(UserError, match="'temporal'.* t2v, ssr"):
        parse({**config, "temporal": t2v[0]["temporal"]})


@pytest.mark.parametrize("stage", ["t2i", "t2v"])
def test_compile_lowers_the_program_that_train_runs(
    stage, config, t2v, root, tmp_path, monkeypatch
):
    """Equal HLO from the abstract arguments of one and the arrays of the other."""
    config = {"t2i": config, "t2v": {**t2v[0], "frozen_dtype": "bfloat16"}}[stage]
    config = {**config, "gradient_accumulation": 2}
    lowered = []

    def build(*arguments):
        program = build_program(*arguments)

        def step(*arguments):
            lowered.append(program.step.lower(*arguments).as_text())
            raise InterruptedError  # nothing needs to be compiled

        return dataclasses.replace(program, step=step)

    monkeypatch.setattr(train, "build_program", build)
    with pytest.raises(InterruptedError):
        train_here(config, tmp_path / "run")
    config = parse(config)
    program = train_program(config, jax.devices(), *read_networks(config, backbone=None))
    assert [program.function.lower(*program.arguments).as_text()] == lowered
    assert "stablehlo.convolution" in lowered[0]


def test_run_folders_refer_to_parameters_that_training_does_not_change(t2v, t2i_run):
    initial = ["checksums.json", "config.json"]
    files = {"initial": initial, "model": [*initial, "unet_temporal.safetensors"]}
    for name, names in files.items():
        assert sorted(path.name for path in (t2v[1] / name).iterdir()) == names
        assert stored_base(t2v[1] / name) == Base(t2i_run[0] / "model")
    # The package may be updated or removed.
    assert base_of(parse({**t2v[0], "init_from": "shapes"}).stage) is None


def test_a_base_that_moved_or_changed(t2v, t2i_run, tmp_path):
    base, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(t2i_run[0] / "model", base)
    config = {**t2v[0], "init_from": str(base)}
    write_initial_model(parse(config), run / "initial", captions=list)
    model = read_model_folder(base)
    base.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=f"^{run}/initial: base: {base}: "):
        train_here(config, run)
    unet = jax.tree.map(lambda leaf: leaf + 1, model.params["unet"])
    params = {**model.params, "unet": unet}
    write_model_folder(base, dataclasses.replace(model, params=params))
    with pytest.raises(UserError, match=f"^{run}/initial/config.json: base {base} .*digest"):
        train_here(config, run)


def test_export(t2v, tmp_path, capsys):
    def run(*flags):
        export.FLAGS.unparse_flags()
        export.main(["export", *flags])

    workdir, out = t2v[1], tmp_path / "complete"
    run(f"--workdir={workdir}", "--step=3", f"--out={out}", "--complete")
    assert capsys.readouterr().out == f"step 3: model in {out}\n"
    model, complete = read_model_folder(workdir / "model"), read_model_folder(out)
    assert stored_base(out) is None and complete.tokenizer == model.tokenizer
    jax.tree.map(np.testing.assert_array_equal, complete.params, model.params)
    files = {path.name: path.read_bytes() for path in (workdir / "model").iterdir()}
    exported = workdir.parent / "exported" / "model"
    run(f"--workdir={workdir}", f"--out={exported}")
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == files
    with pytest.raises(UserError, match=f"{workdir}/checkpoints: no step 7, .*: 3$"):
        run(f"--workdir={workdir}", "--step=7")
    with pytest.raises(UserError, match=f"{tmp_path}/run.json: "):
        run(f"--workdir={tmp_path}")
    with pytest.raises(UserError, match="--workdir=DIR: missing"):
        run()


def test_checkpoints_by_time_do_not_change_the_result(started, config, tmp_path, monkeypatch):
    patch_loss(monkeypatch)
    config = changed(config, log_every=2, total_steps=5, checkpoint_every=100, keep_checkpoints=9)
    for name, minutes in (("often", 1e-9), ("rarely", 60.0)):
        shutil.copytree(started, tmp_path / name)
        assert train_here({**config, "checkpoint_minutes": minutes}, tmp_path / name) == 0
    assert kept_steps(tmp_path / "often") == [2, 4, 5] and kept_steps(tmp_path / "rarely") == [5]
    often, rarely = ((tmp_path / n / "metrics.csv").read_bytes() for n in ("often", "rarely"))
    assert often == rarely


def test_samples_are_drawn_from_memory_and_last_of_all(started, config, tmp_path, monkeypatch):
    workdir, drawn = tmp_path / "run", []

    def write_samples(config, workdir, log, step, model):
        done = [(workdir / name).exists() for name in ("model", "loss.png", "DONE")]
        drawn.append((step, done, jax.tree.map(np.asarray, model.params)))

    monkeypatch.setattr(train, "write_samples", write_samples)
    patch_loss(monkeypatch)
    shutil.copytree(started, workdir)
    config = changed(config, total_steps=4, sample_every=2)
    assert train_here({**config, "sample_prompts": ("a red circle",)}, workdir) == 0
    assert [(step, done) for step, done, _ in drawn] == [(2, [False] * 3), (4, [True] * 3)]
    model = read_model_folder(workdir / "model")
    jax.tree.map(np.testing.assert_array_equal, drawn[-1][2], model.params)
    assert not np.array_equal(*(params["unet"]["conv_out"]["bias"] for _, _, params in drawn))


def test_samples_are_written(t2v):
    assert (t2v[1] / "samples" / "step_000003.png").stat().st_size > 100
    assert (t2v[1] / "loss.png").exists()


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command with a config and flags; returns its one line of error."""

    def run(config=None, *options, workdir=tmp_path / "new" / "run"):
        argv = ["train.py", f"--workdir={workdir}", *options]
        if config is not None:
            argv.append(f"--config={write_config(tmp_path / 'config.py', config)}")
        monkeypatch.setattr(sys, "argv", argv)  # config_flags reads overrides from there
        train.FLAGS.unparse_flags()
        assert run_command(lambda: train.main(argv), "experiments.train") == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("experiments.train: error: ")
        assert err.count("\n") == 1, err
        assert not (tmp_path / "new" / "run").exists()
        return err

    return run


def test_unknown_fields(command, config):
    error = command({**config, "totl_steps": 3})
    assert re.search("config: .*'totl_steps'.*'total_steps'", error)
    error = command({**config, "text_denoisin": 3})
    assert re.search("config: .*'text_denoisin'.*'text_denoising'", error)
    error = command(changed(config, unet__chanels=(8,)))
    assert re.search("unet: .*'chanels'.*'channels'", error)
    error = command(changed(config, data__resolutoin=8))
    assert re.search("config.data: .*'resolutoin'.*'resolution'", error)
    assert "nonsense" in command(config, "--config.nonsense=1")
    assert "nonsense" in command(config, "--nonsense=1")


def test_invalid_values(command, config):
    for changes, found in (
        ({"batch_size": "many"}, "batch_size.* 'many'.* int"),
        ({"total_steps": 0}, "total_steps: 0,.* 1"),
        ({"gradient_accumulation": 3}, "batch_size: 4,.*gradient_accumulation.*3"),
        ({"unet": None}, "'t2i'.* unet"),
        ({"mesh": {"fsdp": 2}}, "mesh: fsdp 2 x frames 1,.* 1 devices"),
        ({"mesh": {"frames": 0}}, "config: mesh: frames: 0,.* 1"),
        ({"stage": "t3v"}, "config.stage: .*'t3v'.* t2i, style, t2v, conditional, ssr"),
        ({"stage": 3}, "config.stage: 3,.* t2i"),
        ({"stage": "stunet.schema:from_dict"}, "config.stage: 'stunet.schema:from_dict'.* Stage"),
    ):
        assert re.search(found, command({**config, **changes})), changes
    assert "batch_size" in command(config, "--config.batch_size=many")
    error = command(changed(config, unet__text_dim=16))
    assert re.search("text_dim.* 16.* d_model.* 8", error)
    error = command(changed(config, diffusion__variance="learned_range"))
    assert re.search("out_channels.* 3.* 6.*'learned_range'", error)
    assert "7x7" in command(changed(config, data__resolution=7))


def test_fields_of_other_stages(command, config):
    for field, value, owners in (
        ("super_resolution", {}, "ssr, distill"),
        ("frozen_dtype", "bfloat16", "t2v, conditional, ssr"),
        ("trained", "unet", "t2v, conditional, ssr, distill"),
        ("adapter_rank", 2, "style"),
    ):
        error = command({**config, field: value})
        shown = re.escape(repr(value))
        assert re.search(f"'{field}' is {shown}, .*'t2i'.*{owners}\\)", error), field
    # Unset, they are accepted: one file can serve several stages.
    unset = {"frozen": (), "frozen_dtype": None, "trained": "added", "init_from": ""}
    assert parse({**config, **unset}) == parse(config)


def test_fields_that_contradict_each_other(command, config):
    ssr = changed(config, stage="ssr", temporal={"resample": (True,)})
    assert re.search("'ssr'.* super_resolution", command(ssr))
    ssr["super_resolution"] = {"factor": 2}
    assert re.search("unet: None,.*init_from", command({**ssr, "unet": None}))
    assert re.search("frozen: .*'conv_in'", command({**config, "frozen": ("conv_in",)}))
    for field, value in (("frozen", ("conv_in",)), ("frozen_dtype", "bfloat16")):
        assert re.search(f"{field}: .*{re.escape(repr(value))},", command({**ssr, field: value}))
    assert re.search("trained: 'unet',.*'added'", command({**ssr, "trained": "unet"}))
    assert re.search("unet: .*init_from", command({**ssr, "init_from": "somewhere"}))
    text = {"init_from": "somewhere", "unet": None, "text_encoder": None, "text_denoising": 0.1}
    assert re.search("text_denoising: 0.1,.*init_from", command({**ssr, **text}))
    error = command(changed(config, data__text_states=True))
    assert re.search("data.text_states: True,.*False.*'t2i'", error)
    empty = {**config, "unet": None, "text_encoder": None}
    assert re.search("unet: None,.*init_from", command(empty))
    assert re.search("unet: .*init_from", command({**config, "init_from": "somewhere"}))
    started = {**config, "unet": None, "init_from": "somewhere"}
    assert re.search("text_encoder: an architecture,.*init_from", command(started))
    for stage in (config, ssr):
        stage = {**stage, "text_encoder": "t5", "text_denoising": 0.1}
        assert re.search("text_denoising: 0.1, expected 0 .*'t5'", command(stage))
        stage = {**stage, "text_encoder": None, "text_denoising": 0.0}
        assert re.search("text_encoder: None,.*init_from", command(stage))
    corners = changed(ssr, super_resolution__align_corners=True, data__crop=4)
    assert re.search("align_corners: True,.* 4", command(corners))


def test_missing_config(command, tmp_path):
    assert "absent.py" in command(None, f"--config={tmp_path}/absent.py")


def test_init_from(command, t2v, tmp_path, t2i_run):
    config = t2v[0]
    assert f"{tmp_path}/no: " in command({**config, "init_from": f"{tmp_path}/no"})
    assert re.search("init_from: .*'t2v'|'t2v'.*init_from: ", command({**config, "init_from": ""}))
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    error = command({**config, "init_from": str(tmp_path / "young")})
    assert "young: " in error and "model/" in error
    assert f"experiments.export --workdir={tmp_path}/young" in error
    another = changed(config, init_from=str(t2v[1]), temporal__block="conv1d")
    error = command(another)
    assert re.search(f"temporal.block: 'conv1d',.* 'factorised'.*{t2v[1]}/model", error)
    shutil.copytree(t2i_run[0] / "model", tmp_path / "torn")
    weights = tmp_path / "torn" / "unet_spatial.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    error = command({**config, "init_from": str(tmp_path / "torn")})
    assert "unet_spatial.safetensors: " in error


def test_frozen_modules_that_do_not_exist(command, t2v):
    error = command({**t2v[0], "frozen": ("conv_time", "conv_tine")})
    assert re.search("frozen: .*'conv_tine'.* conv.*conv_time, embedding", error)


def test_frames_that_the_temporal_stride_does_not_divide(command, t2v):
    error = command(changed(t2v[0], data__num_frames=5))
    assert re.search("num_frames.* 5.* 2", error)


def test_unwritable_workdir(command, config, tmp_path):
    (tmp_path / "file").write_text("")
    error = command(config, workdir=tmp_path / "file" / "run")
    assert f"--workdir={tmp_path}/file/run: " in error and "Not a directory" in error


def test_a_workdir_in_use_by_another_process(command, config, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with claim_folder(workdir):
        error = command(config, workdir=workdir)
    assert f"{workdir}: in use" in error
    assert list(workdir.iterdir()) == []


def test_resuming_with_another_config(command, config, t2i_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(t2i_run[0], workdir)
    (workdir / "DONE").unlink()
    error = command(changed(config, unet__channels=(8, 24)), workdir=workdir)
    assert re.search(r"config.unet.channels: \[8, 24\], expected \[8, 16\]", error)
    (workdir / "run.json").unlink()  # of an older version
    contents = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    wider = changed(config, unet__channels=(8, 24))
    error = command(wider, workdir=workdir)
    assert "wrong shape: unet/" in error
    assert "unet/down_1_attn_0/k/kernel (expected (24, 24), got (16, 16))" in error
    error = command(changed(config, diffusion__prediction="eps"), workdir=workdir)
    assert re.search(f"{workdir}.*prediction 'v'.*'eps'", error)
    error = command(changed(config, unet__head_dim=4), workdir=workdir)
    assert re.search("unet.head_dim 8.* 4", error)
    error = command({**config, "batch_size": 2}, workdir=workdir)
    assert re.search(f"{workdir}: .* 80 .* 20 .*batch_size 2", error)
    error = command(changed(config, optimizer__name="adafactor"), workdir=workdir)
    assert re.search("checkpoints/20: .*optimizer.name", error)
    after = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    assert after == contents


def test_resuming_with_another_type_of_frozen_kernels(command, t2v, root):
    shutil.copytree(t2v[1] / "initial", root / "another_type" / "initial")
    error = command({**t2v[0], "frozen_dtype": "bfloat16"}, workdir=root / "another_type")
    assert re.search("initial: .*unet/.* float32.*frozen_dtype 'bfloat16'", error)
    error = command({**t2v[0], "frozen_dtype": "bfloat16", "trained": "unet"})
    assert re.search("frozen_dtype: 'bfloat16',.*trained.*'unet'", error)


def test_a_model_folder_has_the_settings_of_its_training(t2i_run, t2v):
    paths = [workdir / "model" / "config.json" for workdir in (t2i_run[0], t2v[1])]
    configs = [json.loads(path.read_text()) for path in paths]
    assert [model["stage"] for model in configs] == ["t2i", "t2v"]
    assert [model["num_frames"] for model in configs] == [1, 4]
    assert {model["prediction"] for model in configs} == {"v"}
    assert {model["variance"] for model in configs} == {"fixed_small"}


def test_a_real_process_reports_a_mistake_in_one_line(root, config, t2i_run):
    path = write_config(root / "t2i.py", config)
    process = start(path, root / "refused", root / "cache", "--config.nonsense=1")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (2, "")
    assert re.fullmatch(r"experiments\.train: error: .*nonsense.*\n", err)
    assert not (root / "refused").exists()
