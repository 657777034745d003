"""Serves the page until Ctrl-C."""

import logging
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stunet import signals
from stunet.engine.cascade import Models
from stunet.errors import UserError
from stunet.studio.access import Access, Guard, access_for, open_page_warning
from stunet.studio.jobs import Queue
from stunet.studio.storage import Storage, UploadQuota, temporary_folder
from stunet.studio.uploads import Limits

_END_S = 5.0  # time for the server's thread to end


def serve(
    models: Models,
    host: str,
    port: int,
    limits: Limits | None = None,
    access: Access | None = None,
) -> None:
    """Serves the page and prints its address. Returns after Ctrl-C, SIGTERM, SIGHUP or SIGQUIT.

    Uploads and results are stored in a temporary folder, which is deleted at the end.

    Args:
      models: Models of the page's jobs, with a base model.
      host: Address to listen on.
      port: Port to listen on. 0 selects a free port.
      limits: Limits of uploads. None uses the defaults.
      access: Who may use the page. None permits everyone who can reach the address, by requests of
        the page itself.

    Raises:
      UserError: The server cannot listen on this address.
    """
    limits, access = limits or Limits(), access or access_for(host)
    port, url_host = free_port(host, port), f"[{host}]" if ":" in host else host
    with temporary_folder() as folder:
        # Gradio reads these variables when it is imported.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        import fastapi
        import gradio

        from stunet.studio.page import CSS, THEME, Studio, build

        jobs, storage = Queue(), Storage(folder, limits.storage)
        page = build(Studio(models, jobs, storage, limits))
        page.queue(default_concurrency_limit=None, api_open=False)
        app = gradio.mount_gradio_app(
            fastapi.FastAPI(openapi_url=None),
            page,
            "/",
            server_name=url_host,
            server_port=port,
            max_file_size=limits.bytes,
            show_error=False,
            theme=THEME,
            css=CSS,
            footer_links=[],
            ssr_mode=False,
            enable_monitoring=False,
        )
        page.is_running = True  # as after `launch`; otherwise Gradio checks less
        with _running(Guard(UploadQuota(app, storage), access), host, port):
            print(f"http://{url_host}:{port}", flush=True)
            if (warning := open_page_warning(host, access)) is not None:
                print(f"stunet: warning: {warning}", file=sys.stderr)
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                pass
            finally:
                signals.defer()
                jobs.cancel()
                # A second Ctrl-C ends the process while it waits for a compilation.
                shutil.rmtree(folder, ignore_errors=True)
                stopped = jobs.close()
    if not stopped:  # compilation cannot be interrupted, and Python's own shutdown would abort
        os._exit(0)


@contextmanager
def _running(app: Any, host: str, port: int) -> Iterator[None]:
    """Runs an ASGI application in a thread until the end of the block.

    Raises:
      UserError: The server cannot listen on this address.
    """
    import uvicorn  # comes with Gradio

    config = uvicorn.Config(app, host, port, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="server", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise UserError(f"--host, --port: cannot listen on {host} port {port}")
        time.sleep(0.01)
    try:
        yield
    finally:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # open pages are cut off
        server.should_exit = True
        thread.join(_END_S)


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
