"""`stunet import-if`, `import-t5` and `export-if`: conversion of published weights."""

import argparse
import contextlib
from collections.abc import Callable, Iterator

from stunet.cli.options import path, path_or_hub_id
from stunet.errors import UserError

IMPORT_IF = """\
Converts DeepFloyd IF weights in diffusers' layout to a model folder, one tensor at a time.

  stunet import-if IF-I-M-v1.0 models/if_m

SRC is the folder of a pipeline (unet/, scheduler/, optionally text_encoder/) or of a U-Net
(config.json and safetensors). Keeps the type of the weights. Does not read pickles.
"""
IMPORT_T5 = """\
Imports a T5 v1.1 encoder: once for several models, or into one model.

  stunet import-t5 IF-I-XL-v1.0/text_encoder models/t5   write a text encoder folder
  stunet import-t5 models/t5 models/if_m                 let a model refer to it, without a copy
  stunet import-t5 IF-I-XL-v1.0/text_encoder models/if_m copy the encoder into a model

SRC contains config.json, safetensors, and tokenizer.json or spiece.model (there or in a sibling
folder tokenizer/), or is the folder of a pipeline with a text_encoder/. Or SRC is a text encoder
folder or a model with a text encoder, which DST refers to by its relative path.

DST is a model, whose text encoder is replaced if it has one, or a new path or a text encoder
folder.
"""
EXPORT_IF = """\
Writes a model's text-to-image part as unet/ and scheduler/ of a diffusers pipeline.

  stunet export-if models/if_m exported

Weights that were imported and not trained since are exported byte for byte.
"""


def add_commands(command: Callable) -> None:
    """Adds the three commands with `command(name, run, help=..., description=...)`."""
    for name, run, summary, description in (
        ("import-if", _import_if, "convert DeepFloyd IF weights to a model folder", IMPORT_IF),
        ("import-t5", _import_t5, "import a T5 v1.1 text encoder", IMPORT_T5),
        ("export-if", _export_if, "export a model's weights for diffusers", EXPORT_IF),
    ):
        add = command(name, run, help=summary, description=description)
        add("source", metavar="SRC", type=path_or_hub_id, help="folder or hub id to read")
        add("target", metavar="DST", type=path, help="folder to write")
        if run is not _export_if:
            add(
                "--variant",
                metavar="NAME",
                help="variant of the weights to read, such as fp16; default: the weights without a "
                "variant, else the only ones",
            )


def _import_if(args: argparse.Namespace) -> None:
    from stunet.conversion.convert import import_if

    with _byte_progress("importing") as on_bytes:
        model = import_if(args.source, args.target, args.variant, on_bytes)
    print(f"{args.target}: {_summarize_sizes(model.params)}")
    if "text_encoder" not in model.params:
        print(
            "The model has no text encoder, which prompts need: "
            f"`stunet import-t5 T5_FOLDER {args.target}` adds one."
        )


def _import_t5(args: argparse.Namespace) -> None:
    from stunet.conversion.convert import import_t5

    with _byte_progress("importing") as on_bytes:
        params = import_t5(args.source, args.target, args.variant, on_bytes)
    print(f"{args.target}: {_summarize_sizes(params)}")


def _export_if(args: argparse.Namespace) -> None:
    from stunet.conversion.convert import export_if

    with _byte_progress("exporting") as on_bytes:
        export_if(args.source, args.target, on_bytes)
    print(args.target)


def _summarize_sizes(params: dict) -> str:
    from stunet.weights.trees import count_parameters

    return ", ".join(
        f"{part} with {count_parameters(tree):,} parameters" for part, tree in params.items()
    )


@contextlib.contextmanager
def _byte_progress(label: str) -> "Iterator[Callable[[int], object]]":
    """Yields a callback that shows a progress bar from its first call on.

    Raises:
      UserError: The block raised an `OSError`, such as for an unreadable folder.
    """
    from tqdm import tqdm

    bars = []

    def on_bytes(size: int) -> None:
        if not bars:
            bars.append(tqdm(desc=label, unit="B", unit_scale=True, unit_divisor=1024))
        bars[0].update(size)

    try:
        yield on_bytes
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error
    finally:
        for bar in bars:
            bar.close()
