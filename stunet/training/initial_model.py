"""The model that a stage of training starts from, whole, as a model folder's content."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

from stunet.config import from_dict, to_dict
from stunet.errors import UserError
from stunet.models.t5 import T5Config, T5Encoder
from stunet.models.unet import UNetConfig, check_video_shape, init_unet
from stunet.text import load_tokenizer, train_tokenizer
from stunet.training.config import TrainConfig
from stunet.weights.inflation import inflate
from stunet.weights.model_folder import ModelFolder, find_model, load_model


def make_initial_model(config: TrainConfig, captions: Callable[[], list[str]]) -> ModelFolder:
    """The model before the first update.

    "t2i": a random text-to-image network and text encoder, with a tokenizer trained on
    `captions()`. "t2v": the model of `config.init_from`, inflated.

    Raises:
      UserError: `init_from` is no text-to-image model, or the network cannot take the data's
        frames.
    """
    key = jax.random.key(config.seed)
    if config.stage == "t2i":
        unet, text_encoder = config.unet, to_dict(config.text_encoder)
        tokenizer = _train_tokenizer(captions(), config.text_encoder.t5.vocab_size)
        params = {
            "unet": jax.jit(lambda key: init_unet(unet, key))(jax.random.fold_in(key, 0)),
            "text_encoder": _init_text_encoder(config.text_encoder.t5, jax.random.fold_in(key, 1)),
        }
    else:
        source = find_model(config.init_from)
        model = load_model(source)
        unet = from_dict(UNetConfig, model.config["architecture"], f"{source}/config.json")
        if unet.temporal is not None:
            raise UserError(f"init_from {source} is inflated already; name a text-to-image model")
        unet, inflated = inflate(model.params["unet"], unet, config.temporal, key)
        text_encoder, tokenizer = model.config["text_encoder"], model.tokenizer
        params = {**model.params, "unet": inflated}

    data = config.data
    check_video_shape(unet, data["num_frames"], data["resolution"], data["resolution"])
    folder_config = {
        "architecture": to_dict(unet),
        "stage": config.stage,
        "resolution": data["resolution"],
        "num_frames": data["num_frames"],
        "fps": data["fps"],
        "schedule": to_dict(config.diffusion.schedule),
        "prediction": config.diffusion.prediction,
        "variance": config.diffusion.variance,
        "text_encoder": text_encoder,
    }
    return ModelFolder(folder_config, params, tokenizer)


def _train_tokenizer(captions: list[str], vocab_size: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        train_tokenizer(captions, vocab_size, path)
        load_tokenizer(path)
        return path.read_bytes()


def _init_text_encoder(config: T5Config, key: jax.Array) -> dict:
    tokens = jax.numpy.zeros((1, 4), "int32")
    return jax.jit(T5Encoder(config).init)(key, tokens, tokens == 0)["params"]
