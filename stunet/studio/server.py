"""Serves the page until Ctrl-C."""

import os
import socket
import sys
import tempfile
import threading
from pathlib import Path

from stunet import signals
from stunet.engine.cascade import Models
from stunet.errors import UserError
from stunet.studio.jobs import Queue
from stunet.studio.uploads import Limits

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(models: Models, host: str, port: int, limits: Limits | None = None) -> None:
    """Serves the page and prints its address. Returns after Ctrl-C, SIGTERM, SIGHUP or SIGQUIT.

    Uploads and results are stored in a temporary folder, which is deleted at the end.

    Args:
      models: Models of the page's jobs, with a base model.
      host: Address to listen on.
      port: Port to listen on. 0 selects a free port.
      limits: Limits of uploads. None uses the defaults.

    Raises:
      UserError: The server cannot listen on this address.
    """
    limits = limits or Limits()
    port, url_host = free_port(host, port), f"[{host}]" if ":" in host else host
    with tempfile.TemporaryDirectory(prefix="stunet-studio-") as folder:
        # Gradio reads these variables when it is imported.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = folder
        # Gradio checks whether the page is up; a proxy must not answer in its place.
        for name in ("no_proxy", "NO_PROXY"):
            os.environ[name] = ",".join(filter(None, [os.environ.get(name), host, *LOOPBACK]))
        from stunet.studio.page import CSS, THEME, Studio, build

        jobs = Queue()
        page = build(Studio(models, jobs, Path(folder), limits))
        page.queue(default_concurrency_limit=None, api_open=False)
        page.launch(
            server_name=url_host,
            server_port=port,
            max_file_size=limits.bytes,
            theme=THEME,
            css=CSS,
            footer_links=[],
            quiet=True,
            share=False,
            ssr_mode=False,
            enable_monitoring=False,
            prevent_thread_lock=True,
        )
        print(f"http://{url_host}:{port}", flush=True)
        if host not in LOOPBACK:
            print(f"stunet: everyone who can reach {host} can use this page", file=sys.stderr)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
        finally:
            signals.defer()
            stopped = jobs.close()
            page.close(verbose=False)
    if not stopped:  # compilation cannot be interrupted, and Python's own shutdown would abort
        os._exit(0)


def free_port(host: str, port: int) -> int:
    """Returns the port, or a free one for 0.

    Raises:
      UserError: The server cannot listen on this address.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port: invalid port {port}, expected 0 to 65535")
    try:
        with socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        ) as server:
            return server.getsockname()[1]
    except OSError as error:
        # Python's message for a port in use is longer; an unknown host has no positive errno.
        reason = os.strerror(error.errno) if (error.errno or 0) > 0 else error.strerror
        raise UserError(
            f"--host, --port: cannot listen on {host} port {port} ({reason}), "
            "expected a free port of this machine"
        ) from error
