"""Runs of a few steps of the stages "style" and "conditional"."""

import json

import numpy as np
import pytest

import stunet
from data.moving_shapes.duotone import (
    DARK,
    LIGHT,
    distance_to_gradient,
    draw_scenes,
    duotone,
    write_duotone_images,
)
from experiments import denoising
from stunet.engine.cascade import stylize
from stunet.errors import UserError
from stunet.model import load
from stunet.weights.model_folder import read_model_folder
from stunet.weights.trees import flatten, is_added
from tests.experiments.runs import changed, parameters, train_here


@pytest.fixture(scope="module")
def style(root, config, t2i_run):
    write_duotone_images(root / "duotone", *draw_scenes(6))
    config = {name: config[name] for name in ("data", "diffusion", "log_every")} | {
        "stage": "style",
        "init_from": str(t2i_run[0]),
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0},
        "batch_size": 2,
        "total_steps": 2,
    }
    return changed(
        config,
        data__name="video_folder",
        data__source=str(root / "duotone"),
        data__num_examples=None,
    )


@pytest.fixture(scope="module")
def styles(root, style):
    """Workdirs by rank of the adapters; 0 trains the network."""
    workdirs = {rank: root / f"style_{rank}" for rank in (0, 2)}
    for rank, workdir in workdirs.items():
        assert train_here(changed(style, adapter_rank=rank), workdir) == 0
    return workdirs


def test_denoising_is_measured_on_the_dataset_of_the_run(styles, tmp_path):
    flags = [f"--model={styles[0]}", f"--out={tmp_path / 'errors'}", "--num_clips=2", "--log_snr=0"]
    denoising.main(["experiments.denoising", *flags])
    errors = json.loads((tmp_path / "errors.json").read_text())["errors"]
    assert errors.keys() == {"own", "another", "none"}
    assert all(0 < error[0] < 1 for error in errors.values())


@pytest.mark.parametrize("rank", [0, 2])
def test_a_style_changes_the_network_of_images_and_not_the_text_encoder(styles, rank):
    before, after = (parameters(styles[rank], name) for name in ("initial", "model"))
    assert before.keys() == after.keys()
    same = {path for path, leaf in after.items() if np.array_equal(leaf, before[path])}
    text = {path for path in after if path.startswith("text_encoder/")}
    assert text and text <= same
    kernels = {path for path, leaf in after.items() if leaf.ndim > 1} - text
    for path in kernels - same:
        change = after[path] - before[path]
        matrix = change.reshape(-1, change.shape[-1])
        if rank:
            assert np.linalg.matrix_rank(matrix, tol=1e-3 * np.abs(matrix).max()) <= rank
    moved = {path for path in after if path.startswith("unet/")} - same
    assert len(moved) > 0.8 * len(kernels) and (rank == 0 or moved <= kernels)


def test_a_style_goes_into_a_model_of_videos(styles, video):
    base, look = load(video), load(styles[0])
    mixed = flatten(stylize(base, look, 0.5).params["unet"])
    for path, leaf in flatten(base.params["unet"]).items():
        other = flatten(look.params["unet"])
        expected = leaf if is_added(path) else (leaf + other[path]) / 2
        np.testing.assert_allclose(mixed[path], expected, atol=1e-6)


def test_a_style_starts_from_the_image_model_in_a_model_of_videos(root, style, video, t2i_run):
    again = changed(style, init_from=str(video), total_steps=1)
    assert train_here(again, root / "style_of_video") == 0
    before = parameters(root / "style_of_video", "initial")
    images = flatten(read_model_folder(t2i_run[0] / "model").params)
    assert before.keys() == images.keys()
    assert all(np.array_equal(leaf, before[path]) for path, leaf in images.items())


@pytest.fixture(scope="module")
def video(root, config, t2i_run):
    workdir = root / "video"
    start = {name: config[name] for name in ("data", "diffusion", "log_every")} | {
        "stage": "t2v",
        "init_from": str(t2i_run[0]),
        "temporal": {"resample": (True,), "attention_layers": 1, "head_dim": 8},
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0},
        "batch_size": 2,
        "total_steps": 1,
    }
    assert train_here(changed(start, data__num_frames=4), workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def distill(config, video):
    start = {name: config[name] for name in ("data", "diffusion", "log_every")} | {
        "stage": "distill",
        "init_from": str(video),
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0},
        "batch_size": 2,
        "total_steps": 2,
    }
    return changed(start, data__num_frames=4)


def test_distilled_models_are_sampled_in_their_own_steps_and_calls(
    root, distill, style, video, t2i_run, tmp_path
):
    assert train_here(distill, root / "guided") == 0
    before, after = (parameters(root / "guided", name) for name in ("initial", "model"))
    source = flatten(read_model_folder(video / "model").params)
    new = before.keys() - source.keys()
    assert new == {f"unet/guidance_embedding/{leaf}" for leaf in ("kernel", "bias")}
    assert after["unet/guidance_embedding/kernel"].any()
    assert all(np.array_equal(leaf, before[path]) for path, leaf in source.items())
    same = {path for path, leaf in after.items() if np.array_equal(leaf, before[path])}
    assert {path for path in source if not is_added(path)} <= same

    with pytest.raises(UserError, match="init_from: guidance of .*guided.* `steps`"):
        train_here(changed(distill, init_from=str(root / "guided")), tmp_path / "again")
    with pytest.raises(UserError, match="init_from: guidance of .*video.* steps=None"):
        train_here(changed(distill, steps=4), tmp_path / "too_early")
    with pytest.raises(UserError, match="sampling: .*None"):
        train_here(changed(distill, sampling={"steps": 3}), tmp_path / "sampling")
    with pytest.raises(UserError, match="sampling.guidance_scale: 4, expected 1 to 3"):
        train_here(changed(distill, scales=(1.0, 3.0)), tmp_path / "scales")
    with pytest.raises(UserError, match="init_from: .* images, .*videos"):
        images = changed(distill, init_from=str(t2i_run[0]), data__num_frames=1)
        train_here(images, tmp_path / "images")
    with pytest.raises(UserError, match="init_from: .*guided.* distilled .*teacher"):
        train_here(changed(style, init_from=str(root / "guided")), tmp_path / "style")
    two = changed(distill, init_from=str(root / "guided"), steps=2)
    assert train_here(two, root / "two_steps") == 0
    with pytest.raises(UserError, match="steps: 2, expected 1, half of those of .*two_steps"):
        train_here(changed(two, init_from=str(root / "two_steps")), tmp_path / "not_half")

    model, rows = load(root / "two_steps"), []
    assert (model.sampling.sampler, model.sampling.steps) == ("few_steps", 2)
    result = stunet.generate(model, "a red star", progress=lambda report: rows.append(report.total))
    assert max(rows) == 2 and np.abs(result.video).max() <= 1
    other = stunet.generate(model, "a red star", sampling=stunet.Sampling(guidance_scale=8.0))
    assert np.abs(other.video - result.video).max() > 1e-4
    with pytest.raises(UserError, match="steps: 4, expected 2"):
        stunet.generate(model, "a red star", sampling=stunet.Sampling(steps=4))
    with pytest.raises(UserError, match="guidance_scale: 9, expected 1 to 8"):
        stunet.generate(model, "a red star", sampling=stunet.Sampling(guidance_scale=9.0))
    with pytest.raises(UserError, match="sampler: 'ddim', expected 'few_steps'"):
        stunet.generate(model, "a red star", sampling=stunet.Sampling(sampler="ddim"))
    with pytest.warns(UserWarning, match="negative_prompt: not used by a distilled model"):
        sampling = stunet.Sampling(negative_prompt="blue")
        stunet.generate(model, "a red star", sampling=sampling)


def test_conditional_trains_what_was_added_and_starts_as_the_video_model(
    root, config, t2i_run, video
):
    conditional = {name: config[name] for name in ("data", "diffusion", "log_every")} | {
        "stage": "conditional",
        "init_from": str(video),
        "conditioning": {"none": 0.5},
        "cond_in_blocks": True,
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0},
        "batch_size": 2,
        "total_steps": 2,
    }
    conditional = changed(conditional, data__num_frames=4)
    assert train_here(conditional, root / "fill") == 0
    source = flatten(read_model_folder(video / "model").params)
    before, after = (parameters(root / "fill", name) for name in ("initial", "model"))
    new = before.keys() - source.keys()
    assert "unet/cond_conv_in/kernel" in new and all(is_added(path) for path in new)
    assert sum(path.endswith("/given/kernel") for path in new) == len(new) - 1 > 2
    assert not any(before[path].any() for path in new)
    assert all(np.array_equal(leaf, before[path]) for path, leaf in source.items())
    for path, leaf in after.items():
        is_trained = not np.array_equal(leaf, before[path])
        # Softmax is invariant to a constant added to all logits, so key biases have no gradient.
        assert is_trained == is_added(path) or path.endswith("k/bias"), path
    with pytest.raises(UserError, match=r"init_from: .*t2i_run/model .*'t2v'"):
        train_here(changed(conditional, init_from=str(t2i_run[0])), root / "wrong")
    (root / "fill" / "DONE").unlink()
    with pytest.raises(UserError, match=r"config\.stage: 't2v', expected 'conditional'"):
        own = ("conditioning", "cond_in_blocks")
        t2v = {name: value for name, value in conditional.items() if name not in own}
        temporal = {"resample": (True,), "attention_layers": 1, "head_dim": 8}
        t2v |= {"stage": "t2v", "init_from": str(t2i_run[0]), "temporal": temporal}
        train_here(t2v, root / "fill")
    with pytest.raises(UserError, match=r"config\.cond_in_blocks: False, expected True"):
        train_here(changed(conditional, cond_in_blocks=False), root / "fill")
    (root / "fill" / "run.json").unlink()  # as in a workdir of an older version
    with pytest.raises(UserError, match=r"fill.*initial.*given/kernel"):
        train_here(changed(conditional, cond_in_blocks=False), root / "fill")
    with pytest.raises(UserError, match=r"init_from: .*fill/model .*conditional"):
        train_here(changed(conditional, init_from=str(root / "fill")), root / "wrong")


def test_duotone_pictures_lie_between_two_inks():
    black, white = -np.ones(3, np.float32), np.ones(3, np.float32)
    np.testing.assert_allclose((duotone(black) + 1) / 2, DARK, atol=1e-6)
    np.testing.assert_allclose((duotone(white) + 1) / 2, LIGHT, atol=1e-6)
    middle = duotone(0 * black)
    np.testing.assert_allclose((middle + 1) / 2, np.add(DARK, LIGHT) / 2, atol=1e-6)
    inks = np.stack([duotone(black), duotone(0.3 * white)])
    assert distance_to_gradient(inks) < 1e-6
    across = np.cross(inks[1] - inks[0], [0, 0, 1])
    off = inks + 0.5 * across / np.linalg.norm(across)
    assert distance_to_gradient(off) == pytest.approx(0.5)
