"""`stunet import-if`, `import-t5`, `export-if`: weights from elsewhere and to elsewhere."""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from stunet.errors import UserError

IMPORT_IF = """\
Makes a model folder of DeepFloyd IF's weights in diffusers' layout, a tensor at a time.

  stunet import-if IF-I-M-v1.0 models/if_m

SRC is a pipeline's folder (unet/, scheduler/; text_encoder/ comes along where it is), or a U-Net's
(config.json and safetensors). Weights keep their type; pickles are never read.
"""
IMPORT_T5 = """\
Puts a T5 v1.1 encoder into a model folder, in place of the one that it has.

  stunet import-t5 IF-I-XL-v1.0/text_encoder models/if_m

SRC holds config.json, safetensors, and tokenizer.json or spiece.model (there, or in a tokenizer/
beside it); or it is a pipeline's folder with a text_encoder/ of that kind.
"""
EXPORT_IF = """\
Writes a model's text-to-image part as a diffusers pipeline's unet/ and scheduler/.

  stunet export-if models/if_m IF-again

What was imported and not trained comes out equal, byte for byte.
"""


def add_commands(command: Callable) -> None:
    """Adds these commands by `command(name, run, **texts)`."""
    for name, run, texts in (
        ("import-if", _import_if, ("DeepFloyd IF's weights become a model folder", IMPORT_IF)),
        ("import-t5", _import_t5, ("add a T5 v1.1 text encoder to a model folder", IMPORT_T5)),
        ("export-if", _export_if, ("a model's weights for diffusers", EXPORT_IF)),
    ):
        add = command(name, run, help=texts[0], description=texts[1])
        add("source", metavar="SRC", type=Path, help="what is read")
        add("target", metavar="DST", type=Path, help="the folder that is written")
        if run is not _export_if:
            add(
                "--variant",
                metavar="NAME",
                help="of the weights, such as fp16; default: the plain ones, or the only ones",
            )


def _import_if(args: argparse.Namespace) -> None:
    from stunet.conversion.convert import import_if

    with _byte_progress("importing") as on_bytes:
        model = import_if(args.source, args.target, args.variant, on_bytes)
    print(f"{args.target}: {_described(model.params)}")
    if "text_encoder" not in model.params:
        print(
            "It has no text encoder, which prompts need: "
            f"`stunet import-t5 T5_FOLDER {args.target}` adds one."
        )


def _import_t5(args: argparse.Namespace) -> None:
    from stunet.conversion.convert import import_t5

    with _byte_progress("importing") as on_bytes:
        model = import_t5(args.source, args.target, args.variant, on_bytes)
    print(f"{args.target}: {_described(model.params)}")


def _export_if(args: argparse.Namespace) -> None:
    from stunet.conversion.convert import export_if

    with _byte_progress("exporting") as on_bytes:
        export_if(args.source, args.target, on_bytes)
    print(args.target)


def _described(params: dict) -> str:
    from stunet.weights.trees import count_parameters

    return ", ".join(
        f"{part} of {count_parameters(tree):,} parameters" for part, tree in params.items()
    )


@contextlib.contextmanager
def _byte_progress(doing: str) -> "Iterator[Callable[[int], object]]":
    """A bar for `on_bytes`, once something is read; a folder that may not be read is one line."""
    from tqdm import tqdm

    bars = []

    def on_bytes(size: int) -> None:
        if not bars:
            bars.append(tqdm(desc=doing, unit="B", unit_scale=True, unit_divisor=1024))
        bars[0].update(size)

    try:
        yield on_bytes
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error
    finally:
        for bar in bars:
            bar.close()
