"""`stunet studio`: serves a web page with a tab per application."""

import argparse
from collections.abc import Callable

from stunet.cli import options
from stunet.engine.applications import APPLICATIONS
from stunet.errors import UserError
from stunet.weights import shipped

DEFAULT_PORT = 7860
DESCRIPTION = """\
Serves a web page with a tab for each application of the model. By default only this machine can
reach it.

  stunet studio
  stunet studio --model runs/fill --upscale runs/tiny_ssr --style runs/duotone
"""
EPILOG = """\
Tabs that need a model of stage 'conditional': {conditional}.
Tabs that need --upscale: {super_resolution}.
Needs Gradio: pip install "stunet[studio]". Ctrl-C stops the server.
"""


def add_commands(command: Callable) -> None:
    """Adds this command with `command(name, run, arguments, help=..., description=...)`."""
    needs = {
        kind: ", ".join(name for name, a in APPLICATIONS.items() if a.model == kind)
        for kind in ("conditional", "super_resolution")
    }
    command(
        "studio",
        _studio,
        _add_arguments,
        help="serve a web page with all applications",
        description=DESCRIPTION,
        epilog=EPILOG.format(**needs),
    )


def _add_arguments(add: Callable) -> None:
    add(
        "--model",
        metavar="DIR",
        help="model folder, training workdir, hf://OWNER/NAME, or the name of a model that comes "
        f"with stunet; default: {shipped.CONDITIONAL_MODEL} with {shipped.UPSCALER} and "
        f"{shipped.STYLE_MODEL}",
    )
    add(
        "--upscale",
        metavar="DIR",
        action="append",
        default=[],
        help="super-resolution model that enlarges videos; repeat for a cascade; default: none "
        "with --model",
    )
    add(
        "--style",
        metavar="DIR",
        help="model tuned to a style; default: none with --model",
    )
    add(
        "--host",
        type=options.host,
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 serves the whole network; default: %(default)s",
    )
    add(
        "--auth",
        metavar="USER:FILE",
        help="ask for this name and the password that the file contains; only you may be able to "
        "read the file; default: no log-in",
    )
    add(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="host name in addresses of the page, such as that of a proxy; repeat for several; "
        "default: only localhost and --host",
    )
    add(
        "--port",
        type=options.port,
        default=DEFAULT_PORT,
        help="port to listen on; 0 selects a free one; default: %(default)s",
    )


def _studio(args: argparse.Namespace) -> None:
    _check_gradio()

    from stunet.compiling import prepare_compiler
    from stunet.engine.cascade import load_models
    from stunet.studio.access import access_for, read_credentials
    from stunet.studio.server import free_port, serve

    # Loading the models takes longer.
    credentials = None if args.auth is None else read_credentials(args.auth)
    access = access_for(args.host, args.allow_host, credentials)
    free_port(args.host, args.port)
    prepare_compiler()
    model, upscale, style = args.model, args.upscale, args.style
    if model is None:  # models that serve every tab
        model, upscale = shipped.CONDITIONAL_MODEL, upscale or [shipped.UPSCALER]
        style = style or shipped.STYLE_MODEL
    serve(load_models(model, upscale, style), args.host, args.port, access=access)


def _check_gradio() -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("gradio")
    except PackageNotFoundError:
        found = None
    if found is None or found.split(".")[0] != "6":
        installed = "not installed" if found is None else f"version {found}"
        raise UserError(f'gradio: {installed}, expected version 6: pip install "stunet[studio]"')
