"""`cortex serve`: the two daemons."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, get_args

import typer

from cortex_cli.config_files import read_catalogue, read_gateway, read_neuron
from cortex_cli.options import noun
from cortex_common import log
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import GatewayConfig
from cortex_common.config.loader import LoadedConfig
from cortex_common.errors import NotSupported

app = noun("Run the gateway or a neuron")

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="Settings; default: in /etc/cortex, if there")
]
Check = Annotated[bool, typer.Option("--check", help="Check the settings and end")]
LogLevel = Annotated[str, typer.Option(help="debug, info, warning or error")]
LogFormat = Annotated[
    str,
    typer.Option(help="console for people, json for collectors; default: console on a terminal"),
]


@app.command(
    "gateway", epilog="Example: `cortex serve gateway --config cortex.toml --models models.toml`"
)
def gateway(
    *,
    config: Config = None,
    models: Annotated[
        Path | None,
        typer.Option("--models", "-m", help="The catalogue; default: what the settings name"),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Serve inference without a key to whoever can connect"),
    ] = False,
    check: Check = False,
    log_level: LogLevel = "info",
    log_format: LogFormat = "",
) -> None:
    """Run the gateway: the API that clients talk to."""
    if insecure:
        # As a variable, so that it also holds when the settings are read again.
        os.environ["CORTEX_GATEWAY__INSECURE"] = "true"
    settings = read_gateway(config, os.environ)
    catalogue = read_catalogue(models, settings, os.environ)
    try:
        from cortex_server.main import check as check_files
        from cortex_server.main import serve
    except ModuleNotFoundError as missing:
        if not _is_extra(missing, "cortex_server"):
            raise
        raise _not_installed(missing, "gateway") from missing
    if check:
        check_files(settings.value)
        sys.stdout.write("ok\n")
        return
    _set_up_logs(log_level, log_format)

    def read() -> tuple[LoadedConfig[GatewayConfig], LoadedConfig[Catalogue]]:
        again = read_gateway(config, os.environ)
        return again, read_catalogue(models, again, os.environ)

    serve(settings, catalogue, read)


@app.command("neuron", epilog="Example: `cortex serve neuron --config neuron.toml`")
def neuron(
    *,
    config: Config = None,
    check: Check = False,
    log_level: LogLevel = "info",
    log_format: LogFormat = "",
) -> None:
    """Run a neuron: the daemon of a GPU host."""
    settings = read_neuron(config, os.environ)
    try:
        from neuron_server.main import check as check_files
        from neuron_server.main import serve
    except ModuleNotFoundError as missing:
        if not _is_extra(missing, "neuron_server"):
            raise
        raise _not_installed(missing, "neuron") from missing
    if check:
        check_files(settings.value)
        sys.stdout.write("ok\n")
        return
    _set_up_logs(log_level, log_format)
    serve(settings)


def _set_up_logs(level: str, fmt: str) -> None:
    formats = get_args(log.LogFormat)
    if level not in {"debug", "info", "warning", "error"}:
        raise typer.BadParameter(f"{level!r} is not a level", param_hint="--log-level")
    if fmt and fmt not in formats:
        raise typer.BadParameter(f"{fmt!r} is not a format", param_hint="--log-format")
    by_default: log.LogFormat = "console" if sys.stderr.isatty() else "json"
    log.configure_logging(level, "json" if fmt == "json" else "console" if fmt else by_default)


def _is_extra(missing: ModuleNotFoundError, package: str) -> bool:
    """Whether what is missing was never installed; a module inside our own package is a defect."""
    name = missing.name or ""
    return name == package or not name.startswith(("cortex_", "neuron_server"))


def _not_installed(missing: ModuleNotFoundError, extra: str) -> NotSupported:
    package = "neuron" if extra == "neuron" else "cortex"
    return NotSupported(
        f"the {extra} is not installed here: {missing.name} is missing",
        hints=(f"pip install 'cortex-gpu[{extra}]', or on Fedora: dnf install {package}",),
    )
