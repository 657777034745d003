"""FLOPs of a train step and the speed of devices, as telemetry reports them."""

import jax
import pytest

from experiments.common.flops import model_flops
from experiments.common.workload import describe_workload, peak_flops, step_flops
from stunet.model import parameter_shapes
from stunet.models.unet import UNet
from stunet.training.mesh import make_mesh
from stunet.training.program import build_program
from tests.experiments.runs import T2I, changed, parse
from tests.tiny import T5, UNET


def traced(**changes):
    """Returns the arguments of `step_flops` for stage t2i with the tests' networks."""
    config = parse(changed(T2I, **changes))
    trained, frozen = config.stage.split(parameter_shapes(UNET, T5), 0)
    mesh = make_mesh(1, 1, jax.devices()[:1])
    return config, UNET, T5, 12, build_program(config, UNET, T5, trained, frozen, mesh)


def test_flops_of_a_step():
    """Gradients cost about twice the forward pass; how the step is run does not matter."""
    flops = step_flops(*traced())
    x = jax.ShapeDtypeStruct((4, 1, 8, 8, 3), "float32")
    t, text = jax.ShapeDtypeStruct((4,), "float32"), jax.ShapeDtypeStruct((4, 12, 8), "float32")
    params = parameter_shapes(UNET, None)["unet"]
    forward = model_flops(lambda p, *a: UNet(UNET).apply({"params": p}, *a), params, x, t, text)
    assert 2.5 < flops / sum(forward.values()) < 3.5
    again = traced(remat="blocks", gradient_accumulation=2, optimizer__name="muon")
    assert step_flops(*again) == pytest.approx(flops)


def test_description():
    workload = describe_workload(*traced(optimizer__warmup_steps=10))
    assert (workload.batch_size, workload.total_steps, workload.num_devices) == (4, 20, 1)
    assert workload.learning_rate(1) == pytest.approx(1e-4)
    assert workload.learning_rate(20) == pytest.approx(1e-3)
    assert workload.device_peak is None  # a CPU


def test_peaks():
    assert peak_flops("TPU v5 lite") == peak_flops("TPU v5e") == 197e12
    assert peak_flops("TPU v5p") == 459e12
    assert peak_flops("cpu") is peak_flops("NVIDIA H200") is None
