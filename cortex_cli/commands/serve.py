"""`cortex serve`: run the gateway or a neuron."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, get_args

import typer

from cortex_cli.config_files import read_catalogue, read_gateway, read_neuron
from cortex_cli.options import command_group
from cortex_cli.terminal import write_out
from cortex_common import log
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import GatewayConfig
from cortex_common.config.loader import LoadedConfig
from cortex_common.errors import NotSupported

app = command_group("Run the gateway or a neuron")

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Settings; default: in /etc/cortex, if it exists"),
]
Check = Annotated[bool, typer.Option("--check", help="Check the settings and exit")]
LogLevel = Annotated[str, typer.Option(help="debug, info, warning or error")]
LogFormat = Annotated[
    str,
    typer.Option(help="console or json; default: console on a terminal, otherwise json"),
]


@app.command(
    "gateway", epilog="Example: `cortex serve gateway --config cortex.toml --models models.toml`"
)
def gateway(
    *,
    config: Config = None,
    models: Annotated[
        Path | None,
        typer.Option("--models", "-m", help="Catalogue; default: from the settings"),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Serve inference without authentication"),
    ] = False,
    check: Check = False,
    log_level: LogLevel = "info",
    log_format: LogFormat = "",
) -> None:
    """Run the gateway, which serves the API to clients."""
    if insecure:
        # As a variable, so that it also applies when the settings are reloaded.
        os.environ["CORTEX_GATEWAY__INSECURE"] = "true"
    settings = read_gateway(config, os.environ)
    catalogue = read_catalogue(models, settings, os.environ)
    try:
        from cortex_server.main import check as check_files
        from cortex_server.main import serve
    except ModuleNotFoundError as error:
        if not _is_missing_extra(error, "cortex_server"):
            raise
        raise _not_installed(error, "gateway") from error
    if check:
        check_files(settings.value)
        write_out("ok\n")
        return
    _configure_logs(log_level, log_format)

    def read() -> tuple[LoadedConfig[GatewayConfig], LoadedConfig[Catalogue]]:
        reloaded = read_gateway(config, os.environ)
        return reloaded, read_catalogue(models, reloaded, os.environ)

    serve(settings, catalogue, read)


@app.command("neuron", epilog="Example: `cortex serve neuron --config neuron.toml`")
def neuron(
    *,
    config: Config = None,
    check: Check = False,
    log_level: LogLevel = "info",
    log_format: LogFormat = "",
) -> None:
    """Run a neuron, the daemon of a GPU host."""
    settings = read_neuron(config, os.environ)
    try:
        from neuron_server.main import check as check_files
        from neuron_server.main import serve
    except ModuleNotFoundError as error:
        if not _is_missing_extra(error, "neuron_server"):
            raise
        raise _not_installed(error, "neuron") from error
    if check:
        check_files(settings.value)
        write_out("ok\n")
        return
    _configure_logs(log_level, log_format)
    serve(settings)


def _configure_logs(level: str, fmt: str) -> None:
    formats = get_args(log.LogFormat)
    if level not in {"debug", "info", "warning", "error"}:
        raise typer.BadParameter(f"{level!r} is not a log level", param_hint="--log-level")
    if fmt and fmt not in formats:
        raise typer.BadParameter(f"{fmt!r} is not a log format", param_hint="--log-format")
    default: log.LogFormat = "console" if sys.stderr.isatty() else "json"
    log.configure_logging(level, "json" if fmt == "json" else "console" if fmt else default)


def _is_missing_extra(error: ModuleNotFoundError, package: str) -> bool:
    """Return whether a package is not installed, as opposed to a missing module of cortex, which is a bug."""
    name = error.name or ""
    return name == package or not name.startswith(("cortex_", "neuron_server"))


def _not_installed(error: ModuleNotFoundError, extra: str) -> NotSupported:
    package = "neuron" if extra == "neuron" else "cortex"
    return NotSupported(
        f"the {extra} is not installed: {error.name} is missing",
        hints=(f"pip install 'cortex-gpu[{extra}]', or on Fedora: dnf install {package}",),
    )
