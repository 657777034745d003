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

from experiments import train
from experiments.tpu.programs import read_networks, train_program
from stunet.errors import UserError, run_command
from stunet.training.claim import claim_folder
from stunet.training.metrics import read_metrics
from stunet.training.program import build_program
from stunet.training.stages import TextToImage
from stunet.weights.model_folder import read_model_folder
from stunet.weights.trees import count_parameters, flatten, is_temporal, partition
from tests.experiments.runs import changed, parse, start, train_here, write_config

# ml_collections reads a config file by a call that Python means to remove.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def started(root, config, t2i_run):
    """A workdir before the first step, to be copied."""
    folder = root / "started"
    shutil.copytree(t2i_run[0] / "initial", folder / "initial")
    return folder


def patch_loss(monkeypatch, nan_from=None):
    """Makes stage t2i train the output bias towards 1, with loss NaN from a position on."""

    def loss(stage, networks, diffusion, params, batch, seed):
        distance = jnp.mean((params["unet"]["conv_out"]["bias"] - 1) ** 2)
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
    model = read_model_folder(workdir / "model")
    assert all(np.isfinite(leaf).all() for leaf in flatten(model.params).values())
    patch_loss(monkeypatch)  # the run resumes from that checkpoint
    assert train_here(config, workdir) == 0
    losses = [row["loss"] for row in read_metrics(workdir / "metrics.csv")]
    assert len(losses) == 12 and np.all(np.diff(losses) < 0)


def test_a_huge_learning_rate_diverges(started, config, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(started, workdir)
    patch_loss(monkeypatch)
    config = changed(config, optimizer={"learning_rate": 1e38, "warmup_steps": 0})
    with pytest.raises(UserError, match=r" 1 .* 2: .*inf"):
        train_here(config, workdir)


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
    before = flatten(read_model_folder(t2v[1] / "initial").params)
    after = flatten(read_model_folder(t2v[1] / "model").params)
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
    for folder in ("initial", "model"):
        for path, leaf in flatten(read_model_folder(workdir / folder).params["unet"]).items():
            cast = path in t2i and leaf.ndim > 1
            assert leaf.dtype == ("bfloat16" if cast else "float32"), path
            if path in t2i:
                np.testing.assert_array_equal(leaf, t2i[path].astype(leaf.dtype), err_msg=path)
    initial, model = (
        flatten(read_model_folder(workdir / f).params["unet"]) for f in ("initial", "model")
    )
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


def test_super_resolution_is_trained_on_crops_of_windows_without_another_model(root, config):
    ssr = changed(
        config,
        stage="ssr",
        super_resolution={"factor": 2},
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
    before, after = (
        flatten(read_model_folder(root / "ssr" / name).params) for name in ("initial", "model")
    )
    still = [path for path, leaf in after.items() if np.array_equal(leaf, before[path])]
    # Softmax is invariant to a constant added to all logits, so key biases have no gradient.
    assert [path for path in still if "k/bias" not in path] == []
    assert any(path.startswith("text_encoder/") for path in after)
    with Image.open(root / "ssr" / "samples" / "step_000003.png") as sheet:
        width, height = sheet.size
    # Four frames side by side, each the bilinear one above the model's.
    assert width / height == pytest.approx((4 * 16 + 3) / 32)
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
    initial, model = (read_model_folder(root / "external" / name) for name in ("initial", "model"))
    assert model.config["stage"] == "module_tuning"
    before, after = flatten(initial.params), flatten(model.params)
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
        ({"mesh": {"frames": 0}}, "mesh.frames: 0,.* 1"),
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
        ("super_resolution", {}, "ssr"),
        ("frozen_dtype", "bfloat16", "t2v, conditional, ssr"),
        ("trained", "unet", "t2v, conditional, ssr"),
        ("frozen", ("conv_in",), "style, t2v, conditional, ssr"),
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
    for field, value in (("frozen", ("conv_in",)), ("frozen_dtype", "bfloat16")):
        assert re.search(f"{field}: .*{re.escape(repr(value))},", command({**ssr, field: value}))
    assert re.search("trained: 'unet',.*'added'", command({**ssr, "trained": "unet"}))
    assert re.search("unet: .*init_from", command({**ssr, "init_from": "somewhere"}))
    text = {"init_from": "somewhere", "unet": None, "text_encoder": None, "text_denoising": 0.1}
    assert re.search("text_denoising: 0.1,.*init_from", command({**ssr, **text}))
    error = command(changed(config, data__text_states=True))
    assert re.search("data.text_states: True,.*False.*'t2i'", error)
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
    assert "young: " in error and "model/" in error and "checkpoint" in error
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
    assert "unet/down_1_attn_0/text_k/kernel (expected (8, 24), got (8, 16))" in error
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


def test_resuming_with_another_type_of_frozen_kernels(command, t2v, tmp_path):
    shutil.copytree(t2v[1] / "initial", tmp_path / "run" / "initial")
    error = command({**t2v[0], "frozen_dtype": "bfloat16"}, workdir=tmp_path / "run")
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
