"""`unmask app`: the web page."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from unmask.cli.command_flags import list_command_flags
from unmask.cli.flag_table import find_operand
from unmask.cli.flag_types import show_default
from unmask.cli.flags import Device, check_device
from unmask.cli.parsing import parse
from unmask.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AppFlags:
    """Where to serve."""

    runs: Path = Path("runs")
    """Folder whose runs and exports are offered, besides the published models."""
    host: str = "127.0.0.1"
    """Address to listen at. Another than this machine's own lets others in: there is no password."""
    port: Annotated[int | None, show_default("the first free one from 7860")] = None
    """Port to listen at."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    offline: bool = False
    """Download nothing: offer what is in the cache, and ask no server."""
    space: Annotated[Path | None, tyro.conf.arg(metavar="DIR"), show_default("serve the page here")] = None
    """Write a folder that runs one model as a Hugging Face Space, instead of serving the page."""
    overwrite: bool = False
    """With --space: replace files there that unmask did not make."""


def run_app(arguments: list[str]) -> None:
    """Run `unmask app`."""
    names, rest = _split_names(arguments)
    flags = parse(AppFlags, rest, "app [MODEL ...]")
    if flags.space is not None:
        return _write_space(names, flags)
    if flags.port is not None and not 1 <= flags.port <= 65_535:
        raise ConfigError(f"--port {flags.port}: from 1 to 65535")
    check_device(flags.device)
    from unmask.app.server import serve

    with serve(names, root=flags.runs, host=flags.host, port=flags.port, device=flags.device,
               offline=flags.offline) as served:  # fmt: skip
        print(f"unmask app: {served.address} (stop with Ctrl-C)", flush=True)
        while True:
            time.sleep(3600)


def _split_names(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the names of models, which may stand before or after flags, and the flags."""
    names, rest = [], list(arguments)
    if not {"-h", "--help"} & set(rest):
        while (place := find_operand(rest, list_command_flags("app"), "unmask app")) is not None:
            names.append(rest.pop(place))
    return names, rest


def _write_space(names: list[str], flags: AppFlags) -> None:
    from unmask.app.space import write_space

    if len(names) != 1 or flags.space is None:
        raise ConfigError("--space writes one model: unmask app MODEL --space DIR")
    write_space(names[0], flags.space, overwrite=flags.overwrite)
    print(f"wrote {flags.space}: upload it as a Space, or try it with python {flags.space / 'app.py'}")
