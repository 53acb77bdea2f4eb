"""The three configuration files: schemas, locations, and consistency with each other."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from cortex_common.config.base import Section
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import GatewayConfig
from cortex_common.config.loader import LoadedConfig, load
from cortex_common.config.neuron import NeuronConfig
from cortex_common.errors import ConfigError

SYSTEM_DIR = Path("/etc/cortex")


class ConfigFile(StrEnum):
    """A configuration file, named after what it configures."""

    GATEWAY = "gateway"
    MODELS = "models"
    NEURON = "neuron"


SCHEMAS: Mapping[ConfigFile, type[Section]] = {
    ConfigFile.GATEWAY: GatewayConfig,
    ConfigFile.MODELS: Catalogue,
    ConfigFile.NEURON: NeuronConfig,
}
NAMES: Mapping[ConfigFile, str] = {
    ConfigFile.GATEWAY: "cortex.toml",
    ConfigFile.MODELS: "models.toml",
    ConfigFile.NEURON: "neuron.toml",
}


def _siblings(file: ConfigFile) -> tuple[type[Section], ...]:
    return tuple(schema for other, schema in SCHEMAS.items() if other is not file)


def system_file(file: ConfigFile) -> Path | None:
    """Return /etc/cortex/NAME.toml if it exists."""
    path = SYSTEM_DIR / NAMES[file]
    return path if path.exists() else None


def read_gateway(path: Path | None, environ: Mapping[str, str]) -> LoadedConfig[GatewayConfig]:
    """Read the gateway's settings from a file, by default /etc/cortex/cortex.toml, and the environment.

    Raises:
        ConfigError: see `load`.
    """
    return load(
        GatewayConfig,
        path or system_file(ConfigFile.GATEWAY),
        environ,
        siblings=_siblings(ConfigFile.GATEWAY),
    )


def read_neuron(path: Path | None, environ: Mapping[str, str]) -> LoadedConfig[NeuronConfig]:
    """Read a neuron's settings; see `read_gateway`."""
    return load(
        NeuronConfig,
        path or system_file(ConfigFile.NEURON),
        environ,
        siblings=_siblings(ConfigFile.NEURON),
    )


def read_catalogue(
    path: Path | None, gateway: LoadedConfig[GatewayConfig], environ: Mapping[str, str]
) -> LoadedConfig[Catalogue]:
    """Read the catalogue from a file, by default the one that the gateway's settings name.

    A relative path in the settings is relative to the directory of their file. The file may be missing only if neither
    the caller nor the settings name one.
    """
    if path is None:
        base = gateway.path.parent if gateway.path else SYSTEM_DIR
        path = base / gateway.value.gateway.models
        if not path.exists() and "gateway.models" not in gateway.origins:
            return load(Catalogue, None, environ, siblings=_siblings(ConfigFile.MODELS))
    return load(Catalogue, path, environ, siblings=_siblings(ConfigFile.MODELS))


def read_any(file: ConfigFile, path: Path | None, environ: Mapping[str, str]) -> LoadedConfig[Any]:
    """Read one file, for commands that only show or check it."""
    return load(SCHEMAS[file], path or system_file(file), environ, siblings=_siblings(file))


def detect_kind(path: Path) -> ConfigFile:
    """Return what a file configures: by its name, else by the schema that contains most of its tables.

    Raises:
        ConfigError: it can't be determined, or the file can't be read.
    """
    for file, name in NAMES.items():
        if path.name == name:
            return file
    try:
        tables = set(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    matches = {file: len(tables & set(schema.model_fields)) for file, schema in SCHEMAS.items()}
    best = max(matches, key=lambda file: matches[file])
    if not matches[best]:
        raise ConfigError(
            f"{path}: can't detect what it configures",
            hints=("pass --kind gateway, --kind models or --kind neuron",),
        )
    return best


def find_warnings(gateway: GatewayConfig, catalogue: Catalogue) -> list[str]:
    """Return settings that are valid but probably mistakes."""
    nodes = {n.name for n in gateway.nodes}
    warnings = [
        f"model {m.id}: pinned_on names {name!r}, which is not in [[neurons]]"
        for m in catalogue.models
        for name in m.pinned_on
        if nodes and name not in nodes
    ]
    if not gateway.nodes:
        warnings.append("no [[neurons]]: the gateway has no nodes to send requests to")
    if not catalogue.models and not gateway.upstreams:
        warnings.append("no [[models]]: the gateway has no models to serve")
    return warnings


def json_schema(file: ConfigFile) -> str:
    """Return the JSON schema of a file, as stored in config/."""
    schema = SCHEMAS[file].model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
