"""Computes networks and samples on one and on four devices, in a separate process.

XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m tests.four_devices OUT.npz
"""

import functools
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from stunet.diffusion import Windows, resolve_sampler
from stunet.engine.sampling import (
    ChunkSettings,
    run_chunk,
    sampling_mesh,
    sampling_shardings,
    zero_inputs,
)
from stunet.model import Model, load
from stunet.models.partitioning import Partitioning, shard_over_frames
from stunet.models.unet import UNet, init_unet
from stunet.sharding import parameter_shardings, replicated
from stunet.training.mesh import batch_sharding, make_mesh
from tests.calls import generate
from tests.tiny import CAPTIONS, MAX_TOKENS, UNET, fast_compiles, random_params, save_tiny_model

CONFIG = replace(
    UNET,
    cond_channels=4,
    cond_in_blocks=True,
    temporal=replace(
        UNET.temporal,
        text_modulation=True,
        frame_modulation=True,
        position_encoding=True,
        feed_forward=True,
    ),
)
# name -> (block type, mesh axis fsdp, mesh axis frames, videos, frames per video, remat policy)
CASES = {
    "one video": ("factorised", 1, 4, 1, 8, "none"),
    "two videos per device": ("conv3d", 2, 2, 4, 8, "none"),
    "fewer frames than shards": ("factorised", 2, 2, 4, 6, "blocks"),
}

# name -> (videos, keyword arguments of `generate`)
CLIPS = {
    "guided video": (1, {"num_frames": 4}),  # two rows, on two devices each
    "videos": (3, {"num_frames": 4, "guidance_scale": 1.0, "batch_size": 2}),
    "images": (3, {"num_frames": 1, "guidance_scale": 1.0}),  # a row for three of four devices
    "windows": (1, {"num_frames": 14, "window": 4, "windows_at_once": 1}),
}


def main(out: str) -> None:
    """Saves the results of all cases."""
    np.savez(out, **run_networks(), **sample_clips())


def run_networks() -> dict[str, np.ndarray | str]:
    """Returns outputs and gradients with and without sharded frames, and the sharded programs."""
    rng = np.random.default_rng(0)
    results = {}
    for name, (block, fsdp, shards, videos, frames, remat) in CASES.items():
        config = replace(CONFIG, temporal=replace(CONFIG.temporal, block=block))
        unet, mesh = UNet(config, Partitioning(remat)), make_mesh(fsdp, shards)
        params = random_params(jax.eval_shape(lambda c=config: init_unet(c, jax.random.key(0))))
        x, cond, target = (
            rng.normal(size=(videos, frames, 4, 8, channels)).astype(np.float32)
            for channels in (3, 4, 3)
        )
        t = rng.uniform(0, 999, videos).astype(np.float32)
        text = rng.normal(size=(videos, 3, config.text_dim)).astype(np.float32)
        inputs = (x, t, text, None, cond)

        def error(apply, target, params, *inputs):
            output = apply({"params": params}, *inputs)
            return jnp.mean(jnp.square(output - target)), output

        def run(apply, params, inputs, error=error, target=target):
            step = jax.value_and_grad(functools.partial(error, apply, target), has_aux=True)
            compiled = jax.jit(step).lower(params, *inputs).compile()
            (_, output), gradient = compiled(params, *inputs)
            leaves = jax.tree.leaves_with_path(gradient)
            arrays = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
            return {"output": output, **arrays}, compiled.as_text()

        unsharded, _ = run(unet.apply, params, inputs)
        inputs = jax.device_put(inputs, batch_sharding(mesh))
        params = jax.device_put(params, parameter_shardings(mesh, params))
        sharded, program = run(shard_over_frames(unet, mesh), params, inputs)
        for kind, arrays in ("unsharded", unsharded), ("sharded", sharded):
            results |= {f"{name}/{kind}/{key}": array for key, array in arrays.items()}
        results[f"{name}/program"] = program
    return results


def sample_clips() -> dict[str, np.ndarray]:
    """Returns clips sampled on one and on four devices, and the number of compiled programs."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        path = save_tiny_model(Path(folder) / "model", CONFIG, stage="conditional")
        models = {count: load(path, jax.local_devices()[:count]) for count in (1, 4)}
    for name, (videos, arguments) in CLIPS.items():
        for count, model in models.items():
            before = run_chunk._cache_size()
            results[f"{name}/{count}"] = generate(
                model, CAPTIONS[:videos], sampler="ddim", steps=4, chunk=2, **arguments
            )
            results[f"{name}/programs/{count}"] = run_chunk._cache_size() - before
    results["windows/program"] = compile_windows(models[4])
    return results


def compile_windows(model: Model) -> str:
    """Returns a sharded program with loops over steps and windows."""
    windows = Windows.over(14, 4, overlap=2, stride=model.unet.temporal_stride)
    mesh = sampling_mesh(jax.devices(), 2 * len(windows.starts), 4)
    settings = ChunkSettings(
        unet=model.unet,
        schedule=model.schedule,
        prediction=model.prediction,
        sampler=resolve_sampler("ddim"),
        steps=4,
        shape=(14, 8, 8, 3),
        windows=windows,
        windows_at_once=1,
        chunk=2,
        mesh=mesh,
    )
    params = model.params["unet"]
    params = jax.device_put(params, sampling_shardings(mesh, params))
    inputs = jax.device_put(zero_inputs(settings, rows=1, num_tokens=MAX_TOKENS), replicated(mesh))
    return run_chunk.lower(settings, params, *inputs).compile().as_text()


if __name__ == "__main__":
    with fast_compiles():
        main(sys.argv[1])
