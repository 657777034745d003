"""Serves the page until Ctrl-C."""

import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

from stunet.errors import UserError
from stunet.studio.jobs import Queue
from stunet.studio.models import Models
from stunet.studio.uploads import Limits

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(models: Models, host: str, port: int, limits: Limits | None = None) -> None:
    """Serves the page and prints its address; returns after Ctrl-C or SIGTERM.

    Uploads and results lie in a temporary folder that is removed then.

    Args:
      models: that the page works with.
      host: to listen at.
      port: likewise; 0 takes one that is free.
      limits: of uploads.

    Raises:
      UserError: cannot listen there.
    """
    limits = limits or Limits()
    port, in_address = free_port(host, port), f"[{host}]" if ":" in host else host
    with tempfile.TemporaryDirectory(prefix="stunet-studio-") as folder:
        # Gradio reads these when it is imported.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = folder
        # It looks whether the page is up: at this machine itself, not by way of a proxy.
        for name in ("no_proxy", "NO_PROXY"):
            os.environ[name] = ",".join(filter(None, [os.environ.get(name), host, *LOOPBACK]))
        from stunet.studio.page import CSS, THEME, Studio, build

        jobs = Queue()
        page = build(Studio(models, jobs, Path(folder), limits))
        page.queue(default_concurrency_limit=None, api_open=False)
        page.launch(
            server_name=in_address,
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
        print(f"http://{in_address}:{port}", flush=True)
        if host not in LOOPBACK:
            print(f"stunet: everybody who reaches {host} can use this page", file=sys.stderr)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
        finally:
            stopped = jobs.close()
            page.close(verbose=False)
    if not stopped:  # it compiles: nothing interrupts that, and Python's own end would abort in it
        os._exit(0)


def free_port(host: str, port: int) -> int:
    """The port, or for 0 a free one.

    Raises:
      UserError: cannot listen there.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"port {port} is none; ports are 0 to 65535")
    try:
        with socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        ) as server:
            return server.getsockname()[1]
    except OSError as error:
        # Of a port in use Python's own words are longer; an unknown host has no such number.
        reason = os.strerror(error.errno) if (error.errno or 0) > 0 else error.strerror
        raise UserError(f"cannot listen at {host}, port {port} ({reason})") from error
