"""The files that settings name: whether they are there, and what a daemon will read from them can be used."""

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
_ELSEWHERE = ("state_dir", "cgroup", "models", "binary")
"""Made by the daemon, read with the settings, or told by the running neuron."""


@dataclass(slots=True)
class Looked:
    """What became of looking at files; each text begins with the setting.

    Attributes:
        wrong: the daemon could not start.
        doubtful: it could, and something is hardly meant.
        unseen: whoever looks may not, though the daemon may.
        hints: what to do about what is wrong.
    """

    wrong: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    hints: tuple[str, ...] = ()


def look(
    loaded: LoadedConfig[GatewayConfig] | LoadedConfig[NeuronConfig], environ: Mapping[str, str]
) -> Looked:
    """Look at all files that the settings name."""
    found = Looked()
    usable: set[Path] = set()
    for key, file in _named(loaded.value):
        where = f"{loaded.origins.get(key, loaded.path)}: {key}"
        if _look_at(key, file, where, found, environ):
            usable.add(file)
    for key, files, tls in _together(loaded.value):
        if usable.issuperset(f for f in files if f is not None):
            _look_into(key, files, tls, found)
    return found


def _named(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Path]]:
    for name, value in section:
        if isinstance(value, Path) and name not in _ELSEWHERE:
            yield f"{prefix}{name}", value
        elif isinstance(value, BaseModel):
            yield from _named(value, f"{prefix}{name}.")
        elif isinstance(value, tuple):
            for number, entry in enumerate(value):
                if isinstance(entry, BaseModel):
                    yield from _named(entry, f"{prefix}{name}.{number}.")


def _look_at(key: str, file: Path, where: str, found: Looked, environ: Mapping[str, str]) -> bool:
    """Whether it can be read."""
    secret = key.endswith(_SECRETS)
    try:
        path = secret_path(file, environ) if secret else file
        with path.open("rb") as opened:
            opened.read(1)
        if secret:
            read_secret(None, file, environ)
    except PermissionError:
        found.unseen.append(f"{where}: {file} is left out: you may not read it")
    except FileNotFoundError:
        if secret and len(file.parts) == 1 and "CREDENTIALS_DIRECTORY" not in environ:
            found.unseen.append(
                f"{where}: {file} is left out: only the service sees its credentials"
            )
        else:
            found.wrong.append(f"{where}: there is no file {file}")
    except (OSError, ConfigError) as failed:
        reason = failed.message if isinstance(failed, ConfigError) else failed.strerror
        found.wrong.append(f"{where}: {file}: {reason}")
    else:
        return True
    return False


_Files = tuple[Path | None, Path | None, Path | None]


def _together(
    config: GatewayConfig | NeuronConfig,
) -> Iterator[tuple[str, _Files, TlsSection | None]]:
    """Authorities, certificate and key that must fit each other; those of [tls] with it."""
    tls = config.tls
    if tls.certificate is not None:
        yield "tls", (tls.client_ca, tls.certificate, tls.key), tls
    if isinstance(config, GatewayConfig):
        for n, neuron in enumerate(config.neurons):
            yield f"neurons.{n}", (neuron.ca, neuron.certificate, neuron.certificate_key), None
        for n, upstream in enumerate(config.upstreams):
            yield f"upstreams.{n}", (upstream.ca, None, None), None


def _look_into(key: str, files: _Files, tls: TlsSection | None, found: Looked) -> None:
    authorities, own, _ = files
    try:
        client_context(*files) if tls is None else server_tls(tls)
    except ConfigError as failed:
        found.wrong.append(f"{key}: {failed.message.removeprefix('TLS: ')}")
    problems = (c.problem(time.time()) for c in read_certificates(own, authorities))
    found.doubtful += [f"{key}: {trouble}" for trouble in problems if trouble]
