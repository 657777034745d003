"""The commands `stunet import-if`, `import-t5` and `export-if`."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest

from stunet import cli, paths
from stunet.conversion import deepfloyd_if
from stunet.conversion.hub_layout import from_hub, open_weight_files, write_component
from stunet.diffusion import (
    Ancestral,
    SamplingDefaults,
    Schedule,
    SuperResolution,
    Threshold,
    guided_denoiser,
    run_steps,
    thresholded_denoiser,
)
from stunet.model import load
from stunet.models.unet import UNet
from stunet.models.unet_config import TemporalConfig
from stunet.schema import to_dict
from stunet.weights.inflation import inflate
from stunet.weights.model_folder import read_model_folder, write_model_folder
from tests.calls import generate
from tests.parity import cases, folders
from tests.tiny import UNET, fast_compiles, remove_checksums, save_tiny_model


@pytest.fixture(autouse=True)
def _keep_compiler_settings(monkeypatch):
    monkeypatch.setattr("stunet.compiling.prepare_compiler", lambda: None)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return folders.write_pipeline(tmp_path_factory.mktemp("hub") / "IF")


@pytest.fixture(scope="module")
def model(source):
    """Model folder of the complete pipeline."""
    folder = source.with_name("model")
    assert cli.main(["import-if", str(source), str(folder)]) == 0
    return folder


def error_of(capsys, *command):
    """Returns the one line that a failing command prints."""
    assert cli.main([str(part) for part in command]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "error" in lines[0]
    return lines[0]


def test_an_imported_pipeline_is_a_model(model):
    loaded = load(model)
    assert loaded.unet.channels == (32, 64, 96) and loaded.text_encoder.d_model == 48
    assert (loaded.resolution, loaded.num_frames, loaded.fps) == (8, 1, None)
    assert (loaded.schedule, loaded.prediction) == (Schedule(), "eps")
    assert (loaded.variance, loaded.threshold) == ("learned_range", Threshold(0.95, 1.5, "clip"))
    assert loaded.sampling == SamplingDefaults("ancestral", steps=100, guidance_scale=7.0)
    assert loaded.tokenizer.max_tokens == 77 and loaded.tokenizer.lower_case
    with fast_compiles():
        image = generate(loaded, ["a red circle"], steps=2)
    assert image.shape == (1, 1, 8, 8, 3) and image.std() > 0.1


def test_a_round_trip_is_byte_equal(model, source, tmp_path):
    back = tmp_path / "back"
    assert cli.main(["export-if", str(model), str(back)]) == 0
    original = open_weight_files(sorted((source / "unet").glob("*.safetensors")))
    exported = open_weight_files(sorted((back / "unet").glob("*.safetensors")))
    assert exported.keys() == original.keys()
    for name, tensor in original.items():
        assert exported[name].dtype == tensor.dtype and exported[name].shape == tensor.shape
        assert np.asarray(exported[name]).tobytes() == np.asarray(tensor).tobytes(), name
    # The configs have the same meaning as those that were imported, and can be imported again.
    unet_json = json.loads((back / "unet" / "config.json").read_text())
    assert deepfloyd_if.unet_config_from_diffusers(
        unet_json, ""
    ) == deepfloyd_if.unet_config_from_diffusers(cases.STAGE_ONE, "")
    scheduler = json.loads((back / "scheduler" / "scheduler_config.json").read_text())
    assert (
        scheduler.items()
        >= {
            name: value
            for name, value in cases.SCHEDULER.items()
            if name in scheduler and name != "clip_sample"
        }.items()
    )
    assert cli.main(["import-if", str(back), str(tmp_path / "again")]) == 0
    again = read_model_folder(tmp_path / "again").params["unet"]
    jax.tree.map(np.testing.assert_array_equal, again, read_model_folder(model).params["unet"])


@pytest.mark.parametrize("name", list(cases.UNETS))
def test_unet_configs_survive_a_round_trip(name):
    config = deepfloyd_if.unet_config_from_diffusers(cases.UNETS[name], "")
    assert (
        deepfloyd_if.unet_config_from_diffusers(
            deepfloyd_if.unet_config_to_diffusers(config, 64), ""
        )
        == config
    )


@pytest.mark.parametrize(
    "diffusion",
    [
        deepfloyd_if.DiffusionSettings(Schedule(), "v", "fixed_large", None),
        deepfloyd_if.DiffusionSettings(
            Schedule(num_timesteps=500), "x0", "fixed_small", Threshold(0.9, 1)
        ),
    ],
)
def test_schedulers_survive_a_round_trip(diffusion):
    config = deepfloyd_if.scheduler_to_diffusers(diffusion)
    assert deepfloyd_if.scheduler_from_diffusers(config, "") == diffusion


def test_half_precision_is_kept_and_computes_in_float32(tmp_path):
    x, text = cases.noise("x", 1, 1, 8, 8, 3), cases.noise("text", 1, 77, 48)
    outputs = {}
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        folder = tmp_path / np.dtype(dtype).name
        folders.write_unet(folder / "unet", cases.SMALL, dtype)
        for path in (folder / "unet").glob("*.safetensors"):
            path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
        assert cli.main(["import-if", str(folder / "unet"), str(folder / "model")]) == 0
        loaded = load(folder / "model")
        assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {np.dtype(dtype)}
        assert loaded.text_encoder is None
        with fast_compiles():
            apply = jax.jit(UNet(loaded.unet).apply)
            output = apply({"params": loaded.params["unet"]}, x, np.full(1, 500.0), text)
        assert output.dtype == np.float32  # half-precision parameters, full-precision computation
        outputs[dtype] = output
    expected = outputs.pop(np.float32)
    for output in outputs.values():
        assert 0 < np.abs(output - expected).max() / np.abs(expected).max() < 0.03


def test_a_text_encoder_can_be_added_later(model, source, tmp_path, capsys):
    target = tmp_path / "model"
    assert cli.main(["import-if", str(source / "unet"), str(target)]) == 0
    output = capsys.readouterr().out
    assert "unet " in output and f"stunet import-t5 T5_FOLDER {target}" in output
    command = ["generate", "a circle", "--model", target, "--out", tmp_path / "out.png"]
    assert f"`stunet import-t5 T5_FOLDER {target}`" in error_of(capsys, *command)
    assert cli.main(["import-t5", str(source / "text_encoder"), str(target)]) == 0
    assert "text_encoder " in capsys.readouterr().out
    both = read_model_folder(target), read_model_folder(model)
    assert both[0].config == both[1].config and both[0].tokenizer == both[1].tokenizer
    jax.tree.map(np.testing.assert_array_equal, both[0].params, both[1].params)


def test_one_text_encoder_serves_several_models(model, source, tmp_path, capsys):
    t5, first, second = (tmp_path / name for name in ("t5", "first", "second"))
    for _ in range(2):  # the second time it replaces the folder
        assert cli.main(["import-t5", str(source / "text_encoder"), str(t5)]) == 0
        assert re.search(f"{t5}: text_encoder with [\\d,]+ parameters\n", capsys.readouterr().out)
    assert sorted(path.name for path in t5.iterdir()) == [
        "checksums.json",
        "config.json",
        "text_encoder.safetensors",
        "tokenizer.json",
    ]
    complete = read_model_folder(model)
    for target, encoder in ((first, t5), (second, first)):
        assert cli.main(["import-if", str(source / "unet"), str(target)]) == 0
        spatial = (target / "unet_spatial.safetensors").read_bytes()
        assert cli.main(["import-t5", str(encoder), str(target)]) == 0
        names = sorted(path.name for path in target.iterdir())
        assert names == ["checksums.json", "config.json", "unet_spatial.safetensors"]
        assert (target / "unet_spatial.safetensors").read_bytes() == spatial
        assert json.loads((target / "config.json").read_text())["base"] == "t5"
        content = read_model_folder(target)
        assert (content.config, content.tokenizer) == (complete.config, complete.tokenizer)
        jax.tree.map(np.testing.assert_array_equal, content.params, complete.params)
    # A copy of the encoder replaces the reference.
    assert cli.main(["import-t5", str(source / "text_encoder"), str(second)]) == 0
    assert "base" not in json.loads((second / "config.json").read_text())
    assert (second / "text_encoder.safetensors").is_file()

    capsys.readouterr()
    for command, message in (
        (("import-t5", t5, tmp_path / "new"), f"{tmp_path}/new: not a model, .*{t5}"),
        (("import-t5", t5, t5), f"{t5}: not a model, .*{t5}"),
        (("import-t5", second, second), f"{second}/config.json: base is 'second', .*itself"),
        (("export-if", t5, tmp_path / "out"), f"{t5}: .*text encoder only.* model"),
        (("generate", "x", "--model", t5, "--out", tmp_path / "x.png"), "text encoder only"),
    ):
        assert re.search(message, error_of(capsys, *command)), command
    assert not (tmp_path / "new").exists()
    wide = cases.T5 | {"d_kv": 16}
    (source / "text_encoder" / "config.json").rename(tmp_path / "config.json")
    try:
        (source / "text_encoder" / "config.json").write_text(json.dumps(wide))
        error_of(capsys, "import-t5", source / "text_encoder", tmp_path / "new")
    finally:
        (tmp_path / "config.json").rename(source / "text_encoder" / "config.json")
    assert not (tmp_path / "new").exists()


def test_every_nth_frame_of_the_inflated_model_is_the_imported_image(tmp_path):
    """Runs the complete sampler, thresholded per frame, with the noise of those frames."""
    folders.write_unet(tmp_path / "unet", cases.SMALL)
    assert cli.main(["import-if", str(tmp_path / "unet"), str(tmp_path / "model")]) == 0
    loaded = load(tmp_path / "model")
    temporal = TemporalConfig(resample=(True,), attention_layers=1, head_dim=16)
    config, params = inflate(loaded.params["unet"], loaded.unet, temporal, jax.random.key(0))
    steps, frames, stride = 10, 8, config.temporal_stride
    noise = cases.noise("inflated", steps + 1, 1, frames, 8, 8, 3)
    text, empty = (jax.numpy.asarray(cases.noise(name, 1, 77, 48)) for name in ("text", "empty"))
    sampler = Ancestral().bind(loaded.schedule, steps, variance=loaded.variance)

    def sample(config, params, noise):
        denoiser = guided_denoiser(
            lambda x_t, t, text: UNet(config).apply({"params": params}, x_t, t, text),
            loaded.schedule,
            loaded.prediction,
            text,
            empty,
            4.0,
            learned_variance=True,
        )
        threshold = replace(loaded.threshold, over="frame")
        denoiser = thresholded_denoiser(denoiser, loaded.schedule, threshold)
        carry = sampler.init(noise[-1])
        return run_steps(sampler, denoiser, carry, 0, steps, noise[:-1].__getitem__).x

    with fast_compiles():
        noise = jax.numpy.asarray(noise)
        video = jax.jit(lambda n: sample(config, params, n))(noise)
        image = jax.jit(lambda n: sample(loaded.unet, loaded.params["unet"], n))
        images = [image(noise[:, :, i : i + 1]) for i in range(0, frames, stride)]
    expected = np.concatenate(images, axis=1)
    assert expected.std() > 0.1
    assert np.abs(video[:, ::stride] - expected).max() <= 1e-4


def test_wrong_weights(source, tmp_path, capsys):
    unet = folders.write_unet(tmp_path / "unet", cases.STAGE_TWO)
    (unet / "config.json").write_text(json.dumps(cases.STAGE_ONE))
    error = error_of(capsys, "import-if", unet, tmp_path / "model")
    assert "stage II" in error and "config.json" in error
    assert "wrong shape: " in error and "(expected (32, 3, 3, 3), got (32, 6, 3, 3))" in error
    unexpected = error.split("unexpected: ")[1]
    assert "class_embedding.linear_1.weight (80, 32)" in unexpected
    assert len(unexpected.split("), ")) == 2 and unexpected.endswith(" more")
    error = error_of(capsys, "import-if", source / "text_encoder", tmp_path / "model")
    assert "config.json: missing field 'block_out_channels'" in error
    error = error_of(capsys, "import-t5", source / "unet", tmp_path / "model")
    assert "unet/config.json: feed_forward_proj" in error
    assert not (tmp_path / "model").exists()


def test_a_second_stage_is_imported_but_cannot_generate(tmp_path, capsys):
    unet = folders.write_unet(tmp_path / "unet", cases.STAGE_TWO)
    assert cli.main(["import-if", str(unet), str(tmp_path / "model")]) == 0
    model = load(tmp_path / "model")
    assert model.sampling == SamplingDefaults("ancestral", steps=50, guidance_scale=4.0)
    assert (model.threshold.max_value, model.super_resolution.noise_level) == (1.0, 250.0)
    capsys.readouterr()
    command = ["generate", "a circle", "--model", tmp_path / "model", "--out", tmp_path / "x.png"]
    error = error_of(capsys, *command)
    assert f"{tmp_path / 'model'}: " in error and "super-resolution" in error


def test_missing_files_and_pickles(source, tmp_path, capsys):
    error = error_of(capsys, "import-if", tmp_path, tmp_path / "m")
    assert f"{tmp_path}: " in error and "unet/" in error and "config.json" in error
    unet = folders.write_unet(tmp_path / "unet", cases.STAGE_ONE, shard_bytes=10**6)
    shards = sorted(unet.glob("*.safetensors"))
    shards[1].unlink()
    error = error_of(capsys, "import-if", unet, tmp_path / "m")
    assert f"{shards[1]}: " in error and f"expected {len(shards)} shards" in error
    for path in shards[:1] + shards[2:]:
        path.unlink()
    assert f"{unet}: " in error_of(capsys, "import-if", unet, tmp_path / "m")
    (unet / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02.")
    error = error_of(capsys, "import-if", unet, tmp_path / "m")
    assert "diffusion_pytorch_model.bin: is a pickle" in error and 'python -c "' in error
    assert f"glob.glob('{unet}/*.bin')" in error
    assert not (tmp_path / "m").exists()


def test_variants(tmp_path, capsys):
    unet = folders.write_unet(tmp_path / "unet", cases.STAGE_ONE, np.float16)
    name = "diffusion_pytorch_model"
    plain = (unet / f"{name}.safetensors").rename(unet / f"{name}.fp16.safetensors")
    (unet / f"{name}.bf16.safetensors").write_bytes(plain.read_bytes())
    error = error_of(capsys, "import-if", unet, tmp_path / "m")
    assert f"0 weights without a variant, expected 1 of {name}.bf16, {name}.fp16; " in error
    assert "--variant" in error
    error = error_of(capsys, "import-if", unet, tmp_path / "m", "--variant", "fp8")
    assert "0 weights of variant 'fp8'" in error
    assert cli.main(["import-if", str(unet), str(tmp_path / "m"), "--variant", "fp16"]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"beta_schedule": "linear"},
            "beta_schedule is 'linear', expected one of squaredcos_cap_v2",
        ),
        ({"trained_betas": [0.1]}, "trained_betas is [0.1], expected null"),
        ({"variance_type": "learned"}, "variance_type is 'learned', expected one of fixed_small"),
        (
            {"thresholding": False, "clip_sample_range": 2.0},
            "clip_sample_range is 2.0, expected 1.0",
        ),
        ({"prediction_type": "flow"}, "prediction_type is 'flow', expected one of epsilon"),
        ({"prediction_type": ["epsilon"]}, "prediction_type is ['epsilon'], expected str"),
        ({"thresholding": "false"}, "thresholding is 'false', expected bool"),
        ({"num_train_timesteps": 1000.0}, "num_train_timesteps is 1000.0, expected int"),
        (
            {"dynamic_thresholding_ratio": 95},
            "quantile: 95, expected a float from 0 to 1",
        ),
        ({"_class_name": "EulerDiscreteScheduler"}, "_class_name is 'EulerDiscreteScheduler'"),
    ],
)
def test_other_schedulers(source, tmp_path, capsys, change, message):
    pipeline = tmp_path / "IF"
    pipeline.mkdir()
    (pipeline / "unet").symlink_to(source / "unet")
    (pipeline / "scheduler").mkdir()
    path = pipeline / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(cases.SCHEDULER | change))
    error = error_of(capsys, "import-if", pipeline, tmp_path / "m")
    assert f"{path}: {message}" in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed_forward_proj": "relu"}, "feed_forward_proj is 'relu', expected 'gated-gelu'"),
        ({"model_type": "mt5"}, "model_type is 'mt5', expected 't5'"),
        ({"d_model": 64}, "wrong shape: encoder.block.0.layer.0.SelfAttention.k.weight"),
        ({"d_model": 48.0}, "config.json: d_model is 48.0, expected int"),
        ({"d_kv": 16}, "wrong shape: encoder.block.0.layer.0.SelfAttention.k.weight"),
    ],
)
def test_other_text_encoders(source, model, tmp_path, capsys, change, message):
    text = tmp_path / "t5"
    text.mkdir()
    (text / "model.safetensors").symlink_to(source / "text_encoder" / "model.safetensors")
    (text / "config.json").write_text(json.dumps(cases.T5 | change))
    assert message in error_of(capsys, "import-t5", text, model)


def test_a_text_encoder_without_tokenizer(source, model, tmp_path, capsys):
    text = tmp_path / "t5"
    text.symlink_to(source / "text_encoder")
    error = error_of(capsys, "import-t5", text, model)
    assert f"{text}: " in error and "tokenizer.json" in error and "spiece.model" in error
    (tmp_path / "tokenizer").mkdir()
    for content in (b"no protobuf", b"\x08\x01", b"\x0a\x02\x08\x01", b""):
        (tmp_path / "tokenizer" / "spiece.model").write_bytes(content)
        error = error_of(capsys, "import-t5", text, model)
        assert "spiece.model: not a unigram model" in error
    # A tokenizer without T5's special tokens must not replace a working text encoder.
    content = (cases.GOLDEN / "spiece.model").read_bytes()
    (tmp_path / "tokenizer" / "spiece.model").write_bytes(content.replace(b"<pad>", b"<unc>"))
    error = error_of(capsys, "import-t5", text, model)
    assert "tokenizer.json: token <pad> has id None, expected T5's id 0" in error
    assert load(model).tokenizer is not None


def test_the_decoder_and_the_embedding_alias_are_dropped(source, model, tmp_path):
    text = tmp_path / "t5"
    tensors = dict(open_weight_files([source / "text_encoder" / "model.safetensors"]))
    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    tensors["decoder.final_layer_norm.weight"] = tensors["encoder.final_layer_norm.weight"]
    tensors["lm_head.weight"] = tensors["encoder.embed_tokens.weight"]
    write_component(text, "model", tensors, cases.T5, 10**9)
    (text / "spiece.model").write_bytes((cases.GOLDEN / "spiece.model").read_bytes())
    before = read_model_folder(model).params
    assert cli.main(["import-t5", str(text), str(model)]) == 0
    jax.tree.map(np.testing.assert_array_equal, read_model_folder(model).params, before)


def test_export_writes_the_spatial_part_of_a_video_model(model, source, tmp_path):
    content = read_model_folder(model)
    loaded = load(model)
    temporal = TemporalConfig(resample=(True, True), attention_layers=1, head_dim=16)
    unet, params = inflate(content.params["unet"], loaded.unet, temporal, jax.random.key(0))
    config = {**content.config, "architecture": to_dict(unet)}
    params = {**content.params, "unet": params}
    write_model_folder(tmp_path / "video", replace(content, config=config, params=params))
    assert cli.main(["export-if", str(tmp_path / "video"), str(tmp_path / "out")]) == 0
    original = open_weight_files(sorted((tmp_path / "out" / "unet").glob("*.safetensors")))
    table = deepfloyd_if.hub_parameters(loaded.unet)
    imported = from_hub(table, original)
    jax.tree.map(
        np.testing.assert_array_equal, jax.tree.map(np.asarray, imported), loaded.params["unet"]
    )


def test_export_errors(model, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert f"{tmp_path / 'full'}: " in error_of(capsys, "export-if", model, tmp_path / "full")
    tiny = save_tiny_model(tmp_path / "tiny", UNET.text_to_image(), num_frames=1)
    error = error_of(capsys, "export-if", tiny, tmp_path / "out")
    assert re.search("norm_groups.* 4, .* 32 ", error)
    residual = {
        "stage": "ssr",
        "super_resolution": to_dict(SuperResolution(2, residual_scale=0.2)),
    }
    unet = replace(UNET.text_to_image(), in_channels=6, noise_level_embedding=True)
    ssr = save_tiny_model(tmp_path / "ssr", unet, num_frames=1, **residual)
    error = error_of(capsys, "export-if", ssr, tmp_path / "out")
    assert f"{ssr}: super_resolution.residual_scale is 0.2, expected 0 " in error
    assert not (tmp_path / "out").exists()


def test_shards_of_two_sets_are_not_mixed(tmp_path, capsys):
    unet = folders.write_unet(tmp_path / "unet", cases.STAGE_ONE, shard_bytes=10**6)
    first = min(unet.glob("*.safetensors"))
    stale = first.with_name("diffusion_pytorch_model-00001-of-00009.safetensors")
    stale.write_bytes(first.read_bytes())
    error = error_of(capsys, "import-if", unet, tmp_path / "m")
    assert "2 weights without a variant, expected 1 of " in error and " in 9 files" in error


def test_contradictory_models_are_not_exported(model, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    remove_checksums(tmp_path / "model")
    for change, message in (
        ({"architecture": {**config["architecture"], "channels": [32, 64, 160]}}, "wrong shape: "),
        ({"architecture": {**config["architecture"], "layers_per_block": [3, 2, 2]}}, "missing: "),
        ({"variance": "large"}, "variance is 'large', expected one of"),
    ):
        path.write_text(json.dumps(config | change))
        assert message in error_of(capsys, "export-if", tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_current_directory_as_a_folder(source, tmp_path, monkeypatch):
    monkeypatch.chdir(source / "unet")
    (tmp_path / "out").mkdir()
    assert cli.main(["import-if", ".", str(tmp_path / "m")]) == 0
    assert load(tmp_path / "m").threshold == Threshold(0.95, 1.5)
    monkeypatch.chdir(tmp_path / "out")
    assert cli.main(["export-if", str(tmp_path / "m"), "."]) == 0
    assert (tmp_path / "out" / "unet" / "config.json").is_file()


def test_memory_while_importing(tmp_path):
    """Imports a sparse file of 2 GB; memory does not grow with its size."""
    config = cases.STAGE_ONE | {"block_out_channels": [416, 832, 1248], "cross_attention_dim": 1024}
    config |= {"attention_head_dim": 32}
    table = deepfloyd_if.hub_parameters(deepfloyd_if.unet_config_from_diffusers(config, ""))
    header, end = {}, 0
    for parameter in table.values():
        start, end = end, end + 4 * int(np.prod(parameter.shape))
        header[parameter.name] = {
            "dtype": "F32",
            "shape": parameter.shape,
            "data_offsets": [start, end],
        }
    content = json.dumps(header).encode()
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)
    size = path.stat().st_size
    # VmHWM is the peak of this program only; getrusage's starts at the parent process's size.
    code = (
        "import sys; from stunet.cli import main; code = main(sys.argv[1:]); "
        "print(*[line for line in open('/proc/self/status') if line.startswith('VmHWM')]); "
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "import-if", tmp_path / "unet", tmp_path / "model"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", process.stdout)[1])
    assert size > 2e9
    assert peak <= 0.3 * size + 0.5e9, peak
    assert sum(p.stat().st_size for p in (tmp_path / "model").glob("*.safetensors")) > end


def test_conversion_in_a_bucket(source, model, bucket, capsys):
    root = paths.user_path(bucket)
    paths.upload_folder(source, root / "IF")
    for command in (
        ["import-if", root / "IF/unet", root / "models/if"],
        ["import-t5", root / "IF/text_encoder", root / "models/t5"],
        ["import-t5", root / "models/t5", root / "models/if"],
        ["export-if", root / "models/if", root / "exported"],
    ):
        assert cli.main([str(part) for part in command]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert json.loads((root / "models/if/config.json").read_text())["base"] == "t5"
    expected, found = read_model_folder(model), read_model_folder(str(root / "models/if"))
    assert (found.config, found.tokenizer) == (expected.config, expected.tokenizer)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    original, exported = (
        open_weight_files(sorted((folder / "unet").glob("*.safetensors")))
        for folder in (source, root / "exported")
    )
    assert exported.keys() == original.keys()
    for name, tensor in original.items():
        np.testing.assert_array_equal(np.asarray(exported[name]), np.asarray(tensor))
    error = error_of(capsys, "export-if", model, root / "exported")
    assert f"{root}/exported: already exists" in error
