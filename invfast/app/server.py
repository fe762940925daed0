"""The page's server: on this machine alone unless told otherwise, and nothing of it reaches for another."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from invfast.app.models import Models

LOCAL = ("127.0.0.1", "localhost", "::1")
"""Hosts that only this machine reaches."""
LARGEST = "512mb"
"""Of an uploaded file: an inversion with its trajectory is larger than any image."""
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
"""What the browser may load: nothing from elsewhere."""


@contextmanager
def serving(models: Models, host: str, port: int, runtime: str) -> Iterator[str]:
    """Serves the page; its address. Uploads and results lie in a private folder that goes with it.

    Args:
        models: the pipelines.
        host: the address to listen at.
        port: likewise.
        runtime: where networks run.

    Raises:
        ImportError: gradio is missing.
        OSError: the address cannot be listened at; names it.
    """
    check_free(host, port)
    with tempfile.TemporaryDirectory(prefix="invfast-app-") as folder:
        # gradio reads these when it is imported, and takes matplotlib along, which writes a list of fonts.
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
        os.environ.setdefault("MPLCONFIGDIR", folder)
        blocks, looks = _page(models, runtime)
        _, url, _ = blocks.launch(
            server_name=host,
            server_port=port,
            max_file_size=LARGEST,
            app_kwargs={"middleware": [_policy()]},
            quiet=True,
            prevent_thread_lock=True,
            inbrowser=False,
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            **looks,
        )
        try:
            yield url
        finally:
            blocks.close(verbose=False)


def check_free(host: str, port: int) -> None:
    """Raises OSError where the address cannot be listened at."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as asked:
            asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            asked.bind(address)
    except OSError as error:
        used = error.errno == errno.EADDRINUSE
        why = "it is in use" if used else error.strerror or str(error)
        remedy = "pass another --port" if used else "pass another --host or --port"
        raise OSError(f"port {port} of {host} cannot be listened at: {why}; {remedy}") from error


def _page(models: Models, runtime: str) -> tuple[Any, dict[str, Any]]:
    try:
        from invfast.app.page import STYLE, page, theme
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "invfast":
            raise
        raise ImportError(f'the page needs gradio: {error} (pip install "invfast[app]")') from error
    return page(models, runtime), {"theme": theme(), "css": STYLE}


def _policy() -> Any:
    """Middleware that sends POLICY with every answer."""
    from starlette.middleware import Middleware

    class Policy:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def sent(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
                await send(message)

            await self.app(scope, receive, sent)

    return Middleware(Policy)
