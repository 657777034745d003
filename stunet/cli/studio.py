"""`stunet studio`: a web page for everything that a trained model can do."""

import argparse
from collections.abc import Callable

from stunet.errors import UserError
from stunet.weights import shipped

DEFAULT_PORT = 7860
STUDIO = """\
Serves a web page with a tab for each thing that the model can do, on this machine alone.

  stunet studio
  stunet studio --model runs/fill --upscale runs/tiny_ssr --style runs/duotone
"""
STUDIO_MORE = """\
Animate, interpolate, inpaint and cinemagraph take a model of stage 'conditional', upscale takes
--upscale. Needs Gradio: pip install "stunet[studio]". Ctrl-C ends it.
"""


def add_commands(command: Callable) -> None:
    """Adds this command by `command(name, run, **texts)`."""
    add = command(
        "studio", _studio, help="a web page for all of this", description=STUDIO, epilog=STUDIO_MORE
    )
    add(
        "--model",
        metavar="DIR",
        help="a model folder, or a training workdir; without it models that come with stunet, "
        f"{shipped.CONDITIONAL_MODEL}, {shipped.UPSCALER} and {shipped.STYLE_MODEL}",
    )
    add(
        "--upscale",
        metavar="DIR",
        action="append",
        default=[],
        help="a super-resolution model that enlarges videos; again for one more on top",
    )
    add("--style", metavar="DIR", help="a model whose weights were tuned to a style")
    add(
        "--host",
        default="127.0.0.1",
        help="where to listen; 0.0.0.0 is everybody's; default: %(default)s",
    )
    add("--port", type=int, default=DEFAULT_PORT, help="0 takes a free one; default: %(default)s")


def _studio(args: argparse.Namespace) -> None:
    _check_gradio()

    from stunet.compiling import prepare_compiler
    from stunet.studio.models import load_models
    from stunet.studio.server import free_port, serve

    free_port(args.host, args.port)  # before the models take their time
    prepare_compiler()
    model, upscale, style = args.model, args.upscale, args.style
    if model is None:  # one that all tabs are for
        model, upscale = shipped.CONDITIONAL_MODEL, upscale or [shipped.UPSCALER]
        style = style or shipped.STYLE_MODEL
    serve(load_models(model, upscale, style), args.host, args.port)


def _check_gradio() -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("gradio")
    except PackageNotFoundError:
        found = None
    if found is None or found.split(".")[0] != "6":
        what = "is not installed" if found is None else f"{found} is installed"
        raise UserError(f'the studio needs Gradio 6, but it {what}: pip install "stunet[studio]"')
