"""Check of the files that settings refer to: whether they exist and whether a daemon can use their contents."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from cortex_common.config.access import TlsSection
from cortex_common.config.gateway import GatewayConfig
from cortex_common.config.loader import LoadedConfig
from cortex_common.config.neuron import NeuronConfig
from cortex_common.config.secrets import read_secret, secret_path
from cortex_common.errors import ConfigError
from cortex_common.net.tls import client_context, read_certificates, server_tls

_SECRETS = ("token_file", "key_file")
_UNCHECKED = ("state_dir", "cgroup", "models", "binary")
"""Created by the daemon, read with the settings, or reported by the running neuron."""


@dataclass(slots=True)
class FileReport:
    """Results of checking files; each text starts with the setting.

    Attributes:
        errors: problems that prevent the daemon from starting.
        warnings: probable mistakes.
        skipped: files that the current user can't read, although the daemon might.
        hints: how to fix the errors.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    hints: tuple[str, ...] = ()


def check_referenced_files(
    loaded: LoadedConfig[GatewayConfig] | LoadedConfig[NeuronConfig], environ: Mapping[str, str]
) -> FileReport:
    """Check all files that the settings refer to."""
    report = FileReport()
    readable: set[Path] = set()
    for key, file in _paths(loaded.value):
        setting = f"{loaded.origins.get(key, loaded.path)}: {key}"
        if _check_readable(key, file, setting, report, environ):
            readable.add(file)
    for key, files, tls in _tls_files(loaded.value):
        if readable.issuperset(f for f in files if f is not None):
            _check_tls(key, files, tls, report)
    return report


def _paths(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Path]]:
    for name, value in section:
        if isinstance(value, Path) and name not in _UNCHECKED:
            yield f"{prefix}{name}", value
        elif isinstance(value, BaseModel):
            yield from _paths(value, f"{prefix}{name}.")
        elif isinstance(value, tuple):
            for number, entry in enumerate(value):
                if isinstance(entry, BaseModel):
                    yield from _paths(entry, f"{prefix}{name}.{number}.")


def _check_readable(
    key: str, file: Path, setting: str, report: FileReport, environ: Mapping[str, str]
) -> bool:
    """Return whether a file can be read; otherwise add the reason to the report."""
    secret = key.endswith(_SECRETS)
    try:
        path = secret_path(file, environ) if secret else file
        with path.open("rb") as stream:
            stream.read(1)
        if secret:
            read_secret(None, file, environ)
    except PermissionError:
        report.skipped.append(f"{setting}: {file} is skipped: permission denied")
    except FileNotFoundError:
        if secret and len(file.parts) == 1 and "CREDENTIALS_DIRECTORY" not in environ:
            report.skipped.append(
                f"{setting}: {file} is skipped: credentials are visible to the service only"
            )
        else:
            report.errors.append(f"{setting}: file {file} does not exist")
    except (OSError, ConfigError) as error:
        reason = error.message if isinstance(error, ConfigError) else error.strerror
        report.errors.append(f"{setting}: {file}: {reason}")
    else:
        return True
    return False


_TlsFiles = tuple[Path | None, Path | None, Path | None]


def _tls_files(
    config: GatewayConfig | NeuronConfig,
) -> Iterator[tuple[str, _TlsFiles, TlsSection | None]]:
    """Yield authorities, certificate and key that must match each other, with their [tls] section if they have one."""
    tls = config.tls
    if tls.certificate is not None:
        yield "tls", (tls.client_ca, tls.certificate, tls.key), tls
    if isinstance(config, GatewayConfig):
        for n, neuron in enumerate(config.neurons):
            yield f"neurons.{n}", (neuron.ca, neuron.certificate, neuron.certificate_key), None
        for n, upstream in enumerate(config.upstreams):
            yield f"upstreams.{n}", (upstream.ca, None, None), None


def _check_tls(key: str, files: _TlsFiles, tls: TlsSection | None, report: FileReport) -> None:
    authorities, own, _ = files
    try:
        client_context(*files) if tls is None else server_tls(tls)
    except ConfigError as error:
        report.errors.append(f"{key}: {error.message.removeprefix('TLS: ')}")
    problems = (c.problem(time.time()) for c in read_certificates(own, authorities))
    report.warnings += [f"{key}: {problem}" for problem in problems if problem]
