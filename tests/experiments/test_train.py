"""The command's behaviour in this process, mostly with a stage that costs nothing."""

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
from stunet.errors import UserError, run_command
from stunet.schema import from_dict
from stunet.training.claim import claimed
from stunet.training.config import TrainConfig
from stunet.training.initial_model import make_initial_model
from stunet.training.metrics import read_metrics
from stunet.training.stages import Stage
from stunet.weights.model_folder import read_model_folder
from stunet.weights.trees import count_parameters, flatten, is_temporal, partition
from tests.experiments.runs import changed, start, train_here, write_config

# ml_collections reads a config file by a call that Python means to remove.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def started(root, config, whole):
    """A workdir before its first step, to be copied."""
    folder = root / "started"
    shutil.copytree(whole[0] / "initial", folder / "initial")
    return folder


def toy_stage(bad=None):
    """Pulls the output bias to 1; from an example's position on, its loss is NaN."""

    def make_stage(name, networks, diffusion, **_):
        def loss(params, batch, seed):
            distance = jnp.mean((params["unet"]["conv_out"]["bias"] - 1) ** 2)
            spoilt = jnp.zeros(4, bool) if bad is None else batch["position"] >= bad
            return jnp.where(spoilt, jnp.nan, distance)

        return Stage(name, lambda path: path.startswith("unet/conv_out"), loss)

    return make_stage


def steps_kept(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))


def test_nan_stops_with_its_steps_and_keeps_the_last_good_checkpoint(
    started, config, tmp_path, monkeypatch, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(started, workdir)
    config = changed(config, log_every=3, total_steps=12)
    monkeypatch.setattr(train, "make_stage", toy_stage(bad=6 * 4 + 1))  # in step 7
    assert run_command(lambda: train_here(config, workdir), "experiments.train") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("experiments.train: error: training diverged between steps 6 and 7: ")
    assert "the loss of step 7 is nan" in error and "last good checkpoint is kept" in error
    assert [row["step"] for row in read_metrics(workdir / "metrics.csv")] == [1, 2, 3, 4, 5, 6]
    assert steps_kept(workdir) == [4] and not (workdir / "DONE").exists()
    model = read_model_folder(workdir / "model")
    assert all(np.isfinite(leaf).all() for leaf in flatten(model.params).values())
    # and it is good: without the fault, the run ends
    monkeypatch.setattr(train, "make_stage", toy_stage())
    assert train_here(config, workdir) == 0
    losses = [row["loss"] for row in read_metrics(workdir / "metrics.csv")]
    assert len(losses) == 12 and np.all(np.diff(losses) < 0)


def test_a_huge_learning_rate_diverges(started, config, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(started, workdir)
    monkeypatch.setattr(train, "make_stage", toy_stage())
    config = changed(config, optimizer={"learning_rate": 1e38, "warmup_steps": 0})
    with pytest.raises(UserError, match=r"diverged between steps 1 and 2: .* is inf"):
        train_here(config, workdir)


@pytest.fixture(scope="module")
def t2v(root, config, whole):
    """The T2I run, inflated and trained for three steps."""
    config = {name: config[name] for name in ("data", "diffusion", "log_every")} | {
        "stage": "t2v",
        "init_from": str(whole[0]),
        "temporal": {"resample": (True,), "attention_layers": 1, "head_dim": 8},
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0},
        "batch_size": 2,
        "total_steps": 3,
        "sample_prompts": ("a red circle moving left",),
    }
    config = changed(config, data__num_frames=4)
    assert train_here(config, root / "t2v") == 0
    return config, root / "t2v"


def test_t2v_leaves_the_text_to_image_model_alone(t2v, whole):
    t2i = flatten(read_model_folder(whole[0] / "model").params)
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
    started = make_initial_model(from_dict(TrainConfig, config, "config"), list)
    assert started.config["num_frames"] == 8 != t2v[0]["data"]["num_frames"]
    before = flatten(read_model_folder(t2v[1] / "model").params)
    assert flatten(started.params).keys() == before.keys()
    for path, leaf in flatten(started.params).items():
        np.testing.assert_array_equal(leaf, before[path], err_msg=path)


def test_kernels_that_stay_as_they_are_may_be_bfloat16(t2v, whole, root):
    """From the start on, over a stop, and in the model that is saved; what is trained is not."""
    config = {**t2v[0], "frozen_dtype": "bfloat16", "frozen": ("conv_time",), "sample_prompts": ()}
    workdir = root / "t2v_bfloat16"
    assert train_here({**config, "total_steps": 2}, workdir) == 0
    (workdir / "DONE").unlink()
    assert train_here(config, workdir) == 0
    assert [row["step"] for row in read_metrics(workdir / "metrics.csv")] == [1, 2, 3]
    t2i = flatten(read_model_folder(whole[0] / "model").params["unet"])
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


def test_every_trained_parameter_has_gradients_and_no_other(whole, t2v):
    """Seen in the optimiser's moments: both stages' are of what they train, and nowhere zero."""
    for (workdir, step), is_trained in (
        ((whole[0], "20"), lambda path: True),
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
        # Softmax does not see what is added to all of its logits.
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
    # Softmax does not see what is added to all of its logits.
    assert [path for path in still if "k/bias" not in path] == []
    assert any(path.startswith("text_encoder/") for path in after)
    with Image.open(root / "ssr" / "samples" / "step_000003.png") as sheet:
        width, height = sheet.size
    # Four frames side by side, each the clip given above what was made of it.
    assert width / height == pytest.approx((4 * 16 + 3) / 32)
    (root / "ssr" / "DONE").unlink()
    with pytest.raises(UserError, match=r"started with super_resolution.factor 2, but .* 4"):
        train_here(changed(ssr, super_resolution={"factor": 4}), root / "ssr")


def test_samples_are_written(t2v):
    assert (t2v[1] / "samples" / "step_000003.png").stat().st_size > 100
    assert (t2v[1] / "loss.png").exists()


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command with a config's content and flags; returns its one line of error."""

    def run(config=None, *options, workdir=tmp_path / "new" / "run"):
        argv = ["train.py", f"--workdir={workdir}", *options]
        if config is not None:
            argv.append(f"--config={write_config(tmp_path / 'config.py', config)}")
        monkeypatch.setattr(sys, "argv", argv)  # where config_flags looks for overrides
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
    assert "config: unknown field 'totl_steps'; did you mean 'total_steps'?" in error
    error = command(changed(config, unet__chanels=(8,)))
    assert "unet: unknown field 'chanels'; did you mean 'channels'?" in error
    error = command(changed(config, data__resolutoin=8))
    assert "config.data: unknown field 'resolutoin'; did you mean 'resolution'?" in error
    assert "nonsense" in command(config, "--config.nonsense=1")
    assert "nonsense" in command(config, "--nonsense=1")


def test_values_that_cannot_be(command, config):
    assert "batch_size is 'many', expected int" in command({**config, "batch_size": "many"})
    assert "total_steps is 0; it must be at least 1" in command({**config, "total_steps": 0})
    split = {**config, "gradient_accumulation": 3}
    assert "batch_size is 4; gradient_accumulation 3 does not divide it" in command(split)
    assert "stage 't2i' needs the field 'unet'" in command({**config, "unet": None})
    error = command({**config, "super_resolution": {}})
    assert "stage 't2i' has no use for the field 'super_resolution'" in error
    error = command({**config, "frozen_dtype": "bfloat16"})
    assert "stage 't2i' has no use for the field 'frozen_dtype'" in error
    assert "trained is 'unet', which is a choice for" in command({**config, "trained": "unet"})
    error = command({**config, "frozen": ("conv_in",)})
    assert "frozen is conv_in, but without init_from all parameters are random at first" in error
    error = command(changed(config, stage="ssr", temporal={"resample": (True,)}))
    assert "stage 'ssr' needs the field 'super_resolution'" in error
    assert "batch_size" in command(config, "--config.batch_size=many")
    assert "mesh.fsdp 2 x mesh.frames 1 does not divide" in command({**config, "mesh": {"fsdp": 2}})
    error = command(changed(config, unet__text_dim=16))
    assert re.search("text_dim.* 16.* d_model.* 8", error)
    error = command(changed(config, diffusion__variance="learned_range"))
    assert re.search("out_channels.* 3.* 6.*'learned_range'", error)
    assert "frames are 7x7; both must be" in command(changed(config, data__resolution=7))


def test_missing_config(command, tmp_path):
    assert "absent.py" in command(None, f"--config={tmp_path}/absent.py")


def test_init_from(command, t2v, tmp_path, whole):
    config = t2v[0]
    assert f"{tmp_path}/no: no such folder" in command({**config, "init_from": f"{tmp_path}/no"})
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    error = command({**config, "init_from": str(tmp_path / "young")})
    assert "young: " in error and "model/" in error and "checkpoint" in error
    another = changed(config, init_from=str(t2v[1]), temporal__block="conv1d")
    error = command(another)
    assert (
        f"init_from {t2v[1]}/model is inflated already, with temporal.block 'factorised'" in error
    )
    shutil.copytree(whole[0] / "model", tmp_path / "torn")
    weights = tmp_path / "torn" / "unet_spatial.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    error = command({**config, "init_from": str(tmp_path / "torn")})
    assert "unet_spatial.safetensors: incomplete" in error


def test_frozen_modules_that_there_are_none_of(command, t2v):
    error = command({**t2v[0], "frozen": ("conv_time", "conv_tine")})
    assert "frozen: no module of the U-Net in" in error
    assert "is called 'conv_tine'; there are conv" in error and "conv_time, embedding" in error


def test_frames_that_the_temporal_stride_does_not_divide(command, t2v):
    error = command(changed(t2v[0], data__num_frames=5))
    assert "num_frames is 5; the model's temporal stride is 2, so it must be 1" in error


def test_unwritable_workdir(command, config, tmp_path):
    (tmp_path / "file").write_text("")
    error = command(config, workdir=tmp_path / "file" / "run")
    assert f"--workdir={tmp_path}/file/run cannot be made: Not a directory" in error


def test_a_workdir_where_another_run_is_at_work(command, config, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with claimed(workdir):
        error = command(config, workdir=workdir)
    assert f"{workdir}: another process is at work there; wait until it has ended" in error
    assert list(workdir.iterdir()) == []


def test_resuming_with_another_config(command, config, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    (workdir / "DONE").unlink()
    contents = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    wider = changed(config, unet__channels=(8, 24))
    error = command(wider, workdir=workdir)
    assert "wrong shape: unet/" in error
    assert "unet/down_1_attn_0/text_k/kernel (expected (8, 24), got (8, 16))" in error
    error = command(changed(config, diffusion__prediction="eps"), workdir=workdir)
    assert "the run was started with prediction 'v', but the config says 'eps'" in error
    error = command(changed(config, unet__head_dim=4), workdir=workdir)
    assert "the run was started with unet.head_dim 8, but the config says 4" in error
    error = command({**config, "batch_size": 2}, workdir=workdir)
    assert "resume with the batch size it was started with" in error
    error = command(changed(config, optimizer__name="adafactor"), workdir=workdir)
    assert "its optimiser's state does not fit the configured optimizer" in error
    after = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    assert after == contents


def test_resuming_with_another_type_of_frozen_kernels(command, t2v, tmp_path):
    shutil.copytree(t2v[1] / "initial", tmp_path / "run" / "initial")
    error = command({**t2v[0], "frozen_dtype": "bfloat16"}, workdir=tmp_path / "run")
    assert "in float32, but frozen_dtype is 'bfloat16'; choose another workdir" in error
    error = command({**t2v[0], "frozen_dtype": "bfloat16", "trained": "unet"})
    assert "trained is 'unet', which leaves nothing for frozen_dtype" in error


def test_a_model_folder_says_how_it_was_trained(whole, t2v):
    said = [json.loads((run / "model" / "config.json").read_text()) for run in (whole[0], t2v[1])]
    assert [model["stage"] for model in said] == ["t2i", "t2v"]
    assert [model["num_frames"] for model in said] == [1, 4]
    assert {model["prediction"] for model in said} == {"v"}
    assert {model["variance"] for model in said} == {"fixed_small"}


def test_a_real_process_reports_a_mistake_in_one_line(root, config, whole):
    path = write_config(root / "t2i.py", config)
    process = start(path, root / "refused", root / "cache", "--config.nonsense=1")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (2, "")
    assert re.fullmatch(r"experiments\.train: error: .*nonsense.*\n", err)
    assert not (root / "refused").exists()
