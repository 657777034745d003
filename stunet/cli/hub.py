"""`stunet push`: uploads a model folder to the Hugging Face Hub."""

import argparse
from collections.abc import Callable

from stunet.weights.hub import FORMAT, HubId, parse_hub_id

DESCRIPTION = f"""\
Uploads a model to the Hugging Face Hub, in one commit. Creates the repository if it does not exist.

  stunet push runs/tiny_t2v hf://OWNER/NAME
  stunet generate "a red circle moving right" --model hf://OWNER/NAME --out video.mp4

TARGET is {FORMAT}. A folder that inherits from another one (`base`) is
uploaded together with it and needs a FOLDER. Writes a model card, README.md, if there is none.
Needs huggingface_hub (pip install "stunet[hub]") and a token that can write (hf auth login).
"""


def add_commands(command: Callable) -> None:
    """Adds this command with `command(name, run, help=..., description=...)`."""
    add = command(
        "push", _push, help="upload a model to the Hugging Face Hub", description=DESCRIPTION
    )
    add(
        "model",
        metavar="MODEL",
        help="model folder, training workdir, or the name of a model that comes with stunet",
    )
    add("target", metavar="TARGET", type=parse_hub_id, help="hub id to write")
    add("--private", action="store_true", help="make a new repository private")
    add(
        "--license",
        metavar="NAME",
        help="license in a new model card, such as apache-2.0; default: none",
    )


def _push(args: argparse.Namespace) -> None:
    from stunet.weights.hub_models import push_model_folder

    target: HubId = args.target
    print(push_model_folder(args.model, target, args.private, args.license))
