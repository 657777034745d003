"""Writes the networks of `cases` in the layout of the Hugging Face hub, without torch."""

import json
from pathlib import Path

import numpy as np

from stunet.conversion import deepfloyd_if, t5_v1_1
from stunet.conversion.hub_layout import write_component
from tests.parity import cases


def write_unet(folder: Path, config: dict, dtype=np.float32, shard_bytes=10**9) -> Path:
    """Writes the folder of a U-Net."""
    table = deepfloyd_if.hub_parameters(deepfloyd_if.unet_config_from_diffusers(config, "config"))
    write_component(folder, "diffusion_pytorch_model", _weights(table, dtype), config, shard_bytes)
    return folder


def write_t5(folder: Path) -> Path:
    """Writes the folder of a text encoder, including `spiece.model`."""
    table = t5_v1_1.hub_parameters(t5_v1_1.t5_config_from_transformers(cases.T5, "t5"))
    write_component(folder, "model", _weights(table, np.float32), cases.T5, 10**9)
    (folder / "spiece.model").write_bytes((cases.GOLDEN / "spiece.model").read_bytes())
    return folder


def write_pipeline(
    folder: Path, unet: dict = cases.STAGE_ONE, scheduler: dict = cases.SCHEDULER
) -> Path:
    """Writes a pipeline, by default of stage I."""
    write_unet(folder / "unet", unet)
    write_t5(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    (folder / "text_encoder" / "spiece.model").rename(folder / "tokenizer" / "spiece.model")
    (folder / "scheduler").mkdir()
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(scheduler))
    return folder


def _weights(table, dtype):
    return {
        parameter.name: np.asarray(cases.weight(parameter.name, parameter.shape), dtype)
        for parameter in table.values()
    }
