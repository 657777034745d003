"""`experiments.compile` of narrow networks for TPUs that are not on this machine."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.benchmarks.harness.workloads import forward, make_batch, parameter_structs
from experiments.common.flops import model_flops
from experiments.configs import base_128, ssr_1024
from experiments.tpu.programs import compile_for
from experiments.tpu.topologies import describe_topology
from stunet.errors import UserError
from stunet.models.unet_config import TemporalConfig, UNetConfig
from stunet.training.mesh import make_mesh
from stunet.weights.trees import count_parameters, is_added, partition
from tests.experiments.runs import changed, parse

pytestmark = pytest.mark.tpu_compiler

NARROW = UNetConfig(
    channels=(128, 256),
    layers_per_block=(1, 1),
    attention_levels=(False, True),
    text_dim=128,
    cross_attention_dim=128,
    pooling_heads=4,
    temporal=TemporalConfig(resample=(True,), attention_layers=1),
    dtype="bfloat16",
)
TOKENS = 16


@pytest.fixture(scope="module", autouse=True)
def _full_optimisation(_fast_compiles):
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def base(**changes):
    """Returns the base config for v6e with a small video on four chips."""
    small = {
        "temporal": {"resample": (True,)},
        "data__num_frames": 16,
        "data__resolution": 64,
        "batch_size": 4,
        "mesh": {"fsdp": 4, "frames": 1},
    }
    config = changed(base_128.get_config("v6e").to_dict(), **{**small, **changes})
    return parse(config)


def flops_of_a_video():
    structs, batch = parameter_structs(NARROW), make_batch(NARROW, 1, 16, 64, TOKENS)
    return sum(model_flops(forward(NARROW), structs, batch).values())


def assert_fits(report):
    assert 0 < report["argument_bytes"] + report["temporary_bytes"] < report["hbm_bytes"]
    assert 0 < report["estimated_share_of_peak"] < 1


def test_a_train_step_of_the_base_model_for_v6e():
    report = compile_for("v6e:2x2", "train", base(), NARROW, None, TOKENS)
    assert_fits(report)
    # Frozen kernels have no gradients; rematerialisation is added.
    assert 2 < report["model_flops"] / flops_of_a_video() < 3
    assert 1 < report["hardware_flops"] / report["model_flops"] < 1.6
    # A chip stores a quarter and receives the rest: frozen kernels in bfloat16, gradients.
    trained, frozen = (
        count_parameters(tree) for tree in partition(parameter_structs(NARROW), is_added)
    )
    assert report["argument_bytes"] < 1.2 * (2 * frozen + 12 * trained) / 4 + 16 * 64 * 64 * 3 * 4
    collectives = report["collective_bytes"]
    assert report["between_slices_bytes"] == {}
    assert report["loops"] == 0  # kernels are all-gathered, not processed shard by shard
    assert collectives["all-gather"] > 2 * (frozen + trained)
    assert collectives.get("reduce-scatter", 0) + collectives["all-reduce"] > trained


def test_two_slices_exchange_gradients_only():
    report = compile_for("v5e:2x2", "train", base(batch_size=8), NARROW, None, TOKENS, num_slices=2)
    assert report["mesh"] == {"data": 2, "fsdp": 4, "frames": 1}
    trained, _ = partition(parameter_structs(NARROW), is_added)
    # Each of the four chips of a slice sends its quarter of the gradients in bfloat16, padded to
    # tiles, and small ones in float32.
    assert report["between_slices_bytes"].keys() == {"all-reduce"}
    quarter = 2 * count_parameters(trained) / 4
    assert report["between_slices_bytes"]["all-reduce"] == pytest.approx(quarter, rel=0.1)


def test_axes_of_parameters_and_frames_stay_in_a_slice():
    _, devices = describe_topology("v5e:4x4", num_slices=2)
    mesh = make_mesh(fsdp=8, frames=2, devices=devices)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 8, "frames": 2}
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert (slices[0] == slices[0, 0, 0]).all() and (slices[1] == slices[1, 0, 0]).all()
    # The two halves of a video are on neighbours of the torus.
    coords = np.array([[d.coords for d in row] for row in mesh.devices.reshape(-1, 2)])
    assert (np.abs(coords[:, 0] - coords[:, 1]).sum(-1) == 1).all()
    with pytest.raises(UserError, match=r"mesh: fsdp 32 x frames 1,.* 16 devices .* 2 slices"):
        make_mesh(fsdp=32, devices=devices)


def test_a_step_of_the_sampler_for_v5e():
    report = compile_for("v5e:2x2", "sample", base(batch_size=2), NARROW, None, TOKENS)
    assert_fits(report)
    assert report["mesh"] == {"fsdp": 4, "frames": 1}
    # Two videos, each with and without its prompt, on four chips.
    assert report["model_flops"] == pytest.approx(flops_of_a_video(), rel=1e-3)
    assert report["hardware_flops"] == pytest.approx(report["model_flops"], rel=0.1)


def test_super_resolution_for_v5p_split_over_frames():
    unet = dataclasses.replace(
        NARROW, in_channels=6, self_attention=False, noise_level_embedding=True
    )
    config = changed(ssr_1024.get_config().to_dict(), batch_size=1, data__resolution=256)
    config = parse(config)
    report = compile_for("v5p:2x2x1", "sample", config, unet, None, TOKENS)
    assert_fits(report)
    assert report["mesh"] == {"fsdp": 2, "frames": 2}
    assert report["hardware_flops"] == pytest.approx(report["model_flops"], rel=0.2)
    # Each convolution over time receives a frame from the neighbour; nothing is all-gathered.
    frame = 256 * 256 * 128 * 2
    assert report["collective_bytes"]["collective-permute"] >= 4 * frame


def test_a_program_that_exceeds_the_memory():
    config = base(batch_size=512, remat="none")
    needed = r"--topology=v5e:2x2: .* required .* \([\d.]+G\) exceeds available HBM \([\d.]+G\)"
    with pytest.raises(UserError, match=needed):
        compile_for("v5e:2x2", "train", config, NARROW, None, TOKENS)
