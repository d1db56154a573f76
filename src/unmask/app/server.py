"""Serve the page to this machine alone, with limits for whatever a browser or another program sends."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.errors import ConfigError

LOCAL = ("127.0.0.1", "localhost", "::1")
"""The names by which a browser on this machine reaches the page."""
MOST_WAITING = 16
"""Jobs that wait; more are refused."""
MOST_PAGES = 64
"""Pages whose controls gradio remembers."""
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ANALYTICS_MAX_EVENTS": "100",  # it sorts them all after each event
}
"""What gradio must not do; it reads these when it is imported, and when a page is opened."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """A page that is open."""

    address: str
    """Where it is."""
    blocks: Any
    """The page, as gradio has it."""


def require_gradio() -> None:
    """Raise ConfigError if gradio is not installed; switch off its analytics before it is imported."""
    os.environ.update(QUIET)
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ConfigError("the page needs gradio: pip install 'unmask[app]'") from error


@contextmanager
def serve(
    models: Sequence[str] = (),
    *,
    root: Path = Path("runs"),
    host: str = "127.0.0.1",
    port: int | None = None,
    device: str = "auto",
    offline: bool = False,
    published: bool = True,
) -> Iterator[Served]:
    """Serve the page while the block runs.

    Args:
        models: Runs and exports to offer first.
        root: The folder whose runs are offered too.
        host: The address to listen at. Another one than this machine's own lets others in.
        port: The port; None takes the first free one from 7860.
        device: "auto", or the name of a device.
        offline: Use what is in the cache, and ask no server.
        published: Offer the published models.

    Raises:
        ConfigError: gradio is not installed, or the port is in use.
        UnmaskError: A model of `models` is not there.
    """
    require_gradio()
    with tempfile.TemporaryDirectory(prefix="unmask-app-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        from unmask.app.models import Holder, list_choices
        from unmask.app.page import build_page
        from unmask.app.sessions import Sessions
        from unmask.app.studio import Studio

        holder = Holder(device=device, offline=offline)
        studio = Studio(
            holder=holder,
            sessions=Sessions(),
            choices=list_choices(models, root, published=published),
            folder=Path(folder),
            named=tuple(models),
            root=root,
            published=published,
        )
        blocks = build_page(studio).queue(max_size=MOST_WAITING, api_open=False, default_concurrency_limit=4)
        try:
            yield Served(address=_open_page(blocks, host, port, Path(folder)), blocks=blocks)
        finally:
            studio.sessions.close_all()
            blocks.close(verbose=False)
            holder.free()
            os.environ.pop("GRADIO_TEMP_DIR", None)


def _open_page(blocks: Any, host: str, port: int | None, folder: Path) -> str:
    """Open the page in a thread of its own, and return its address."""
    from starlette.middleware import Middleware

    from unmask.app.guard import MOST_UPLOAD, Guard
    from unmask.app.page import CSS, make_theme

    hosts = ["*"] if host in ("0.0.0.0", "::") else [*LOCAL, host]
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            inbrowser=False,
            ssr_mode=False,
            show_error=False,
            max_file_size=MOST_UPLOAD,
            state_session_capacity=MOST_PAGES,
            enable_monitoring=False,
            run_history=False,
            mcp_server=False,
            pwa=False,
            num_workers=0,
            footer_links=[],
            theme=make_theme(),
            css=CSS,
            app_kwargs={
                "middleware": [Middleware(Guard, hosts=hosts, folder=folder, page=blocks)],
                "docs_url": None,
                "redoc_url": None,
                "openapi_url": None,
            },
        )
    except OSError as error:
        raise ConfigError(f"port {port} is in use: give another --port, or leave it out") from error
    return str(address)
