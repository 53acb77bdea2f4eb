"""The three configuration files: which schema each has, where it lies, and what the others know of it."""

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


class File(StrEnum):
    """A configuration file, by what it configures."""

    GATEWAY = "gateway"
    MODELS = "models"
    NEURON = "neuron"


SCHEMAS: Mapping[File, type[Section]] = {
    File.GATEWAY: GatewayConfig,
    File.MODELS: Catalogue,
    File.NEURON: NeuronConfig,
}
NAMES: Mapping[File, str] = {
    File.GATEWAY: "cortex.toml",
    File.MODELS: "models.toml",
    File.NEURON: "neuron.toml",
}


def _siblings(file: File) -> tuple[type[Section], ...]:
    return tuple(schema for other, schema in SCHEMAS.items() if other is not file)


def system_file(file: File) -> Path | None:
    """/etc/cortex/NAME.toml where it exists."""
    path = SYSTEM_DIR / NAMES[file]
    return path if path.exists() else None


def read_gateway(path: Path | None, environ: Mapping[str, str]) -> LoadedConfig[GatewayConfig]:
    """The gateway's settings from a file, or /etc/cortex/cortex.toml, or defaults, under the environment's.

    Raises:
        ConfigError: see `load`.
    """
    return load(
        GatewayConfig, path or system_file(File.GATEWAY), environ, siblings=_siblings(File.GATEWAY)
    )


def read_neuron(path: Path | None, environ: Mapping[str, str]) -> LoadedConfig[NeuronConfig]:
    """A neuron's settings; see `read_gateway`."""
    return load(
        NeuronConfig, path or system_file(File.NEURON), environ, siblings=_siblings(File.NEURON)
    )


def read_catalogue(
    path: Path | None, gateway: LoadedConfig[GatewayConfig], environ: Mapping[str, str]
) -> LoadedConfig[Catalogue]:
    """The catalogue: the file named, or the one that the gateway's settings name.

    A relative path of the settings starts at their file's directory. Only where nobody named a file may
    there be none.
    """
    if path is None:
        base = gateway.path.parent if gateway.path else SYSTEM_DIR
        path = base / gateway.value.gateway.models
        if not path.exists() and "gateway.models" not in gateway.origins:
            return load(Catalogue, None, environ, siblings=_siblings(File.MODELS))
    return load(Catalogue, path, environ, siblings=_siblings(File.MODELS))


def read_any(file: File, path: Path | None, environ: Mapping[str, str]) -> LoadedConfig[Any]:
    """One file by its kind, for commands that only look at it."""
    where = path or system_file(file)
    return load(SCHEMAS[file], where, environ, siblings=_siblings(file))


def kind_of(path: Path) -> File:
    """What a file configures: by its name, else by the schema that knows most of its tables.

    Raises:
        ConfigError: neither tells.
    """
    for file, name in NAMES.items():
        if path.name == name:
            return file
    try:
        tables = set(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as failed:
        raise ConfigError(f"{path}: {failed.strerror or failed}") from failed
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failed:
        raise ConfigError(f"{path}: not valid TOML: {failed}") from failed
    known = {file: len(tables & set(schema.model_fields)) for file, schema in SCHEMAS.items()}
    best = max(known, key=lambda file: known[file])
    if not known[best]:
        raise ConfigError(
            f"{path}: can't tell what it configures",
            hints=("say it with --kind gateway, --kind models or --kind neuron",),
        )
    return best


def warnings(gateway: GatewayConfig, catalogue: Catalogue) -> list[str]:
    """What is allowed but hardly meant."""
    nodes = {n.name for n in gateway.nodes}
    found = [
        f"model {m.id}: pinned_on names {name!r}, which is no neuron here"
        for m in catalogue.models
        for name in m.pinned_on
        if nodes and name not in nodes
    ]
    if not gateway.nodes:
        found.append("no [[neurons]]: the gateway has nobody to send requests to")
    if not catalogue.models and not gateway.upstreams:
        found.append("no [[models]]: clients have no model to ask for")
    return found


def json_schema(file: File) -> str:
    """The JSON schema of a file, for editors, as it is kept in config/."""
    schema = SCHEMAS[file].model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
