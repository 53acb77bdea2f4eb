"""Ports, models and configuration files of the demo's fleet."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cortex_cli.render.formats import toml_value
from cortex_common.units import bytes_to_mib

TINY_MODELS = ("demo/ada", "demo/bob", "demo/cleo")
TINY_MODEL_MB = 256
"""MiB of a tiny model's process: the interpreter, the engine, and the weights."""

CAPACITY_MB = 2 * TINY_MODEL_MB + 8
"""Two of the three models fit, so that the third one causes an eviction."""

_CONTEXT = 1024
"""Context in tokens. Random models do not stop before it is full."""

NODE = "here"


@dataclass(frozen=True, slots=True)
class Ports:
    """Loopback ports of the demo."""

    api: int = 8000
    metrics: int = 9100
    neuron: int = 9090


def is_free(port: int) -> bool:
    """Return whether a loopback port is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def choose_ports(preferred: Ports) -> tuple[Ports, list[str]]:
    """Return the preferred ports, with free ones in place of those in use, and a message for each replacement."""
    messages: list[str] = []
    ports: list[int] = []
    # Kept open until all ports are chosen, so that no port is chosen twice.
    sockets: list[socket.socket] = []
    try:
        for name, port in (
            ("gateway", preferred.api),
            ("metrics", preferred.metrics),
            ("neuron", preferred.neuron),
        ):
            if is_free(port):
                ports.append(port)
                continue
            probe = socket.socket()
            sockets.append(probe)
            probe.bind(("127.0.0.1", 0))
            ports.append(int(probe.getsockname()[1]))
            messages.append(f"port {port} is in use; the {name} uses {ports[-1]}")
    finally:
        for probe in sockets:
            probe.close()
    return Ports(*ports), messages


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A model of the demo's catalogue.

    Attributes:
        vram_mb: expected MiB.
    """

    id: str
    path: Path
    vram_mb: int


def write_models(directory: Path) -> list[DemoModel]:
    """Write the tiny models, with random weights and a real tokenizer, in the format of the real engine."""
    from neuron_server.embedded_engine.tiny_models import write_tiny_gguf

    return [
        DemoModel(
            name,
            write_tiny_gguf(
                directory / name / "model.gguf", seed=seed, name=name, context=_CONTEXT
            ),
            TINY_MODEL_MB,
        )
        for seed, name in enumerate(TINY_MODELS, start=1)
    ]


def user_model(path: Path) -> DemoModel:
    """Return the entry of a user's model."""
    # The weights, and about as much again for the engine's buffers.
    return DemoModel(
        path.stem, path.resolve(), 2 * bytes_to_mib(path.stat().st_size) + TINY_MODEL_MB
    )


@dataclass(frozen=True, slots=True)
class DemoFiles:
    """The configuration of the demo's fleet."""

    gateway: Path
    models: Path
    neuron: Path


def write_files(
    directory: Path, ports: Ports, models: Iterable[DemoModel], capacity_mb: int | None
) -> DemoFiles:
    """Write cortex.toml, models.toml and neuron.toml.

    Args:
        directory: directory to write to; the neuron's state_dir is below it.
        ports: ports to listen on.
        models: the catalogue.
        capacity_mb: MiB that engines can use; None for the host's memory.
    """
    files = DemoFiles(
        directory / "cortex.toml", directory / "models.toml", directory / "neuron.toml"
    )
    files.gateway.write_text(
        _table("[gateway]", listen=_address(ports.api), metrics_listen=_address(ports.metrics))
        # Evict immediately instead of after the default half minute.
        + _table("[eviction]", min_residency=0)
        + _table("[[neurons]]", name=NODE, endpoint=f"http://{_address(ports.neuron)}"),
        encoding="utf-8",
    )
    files.models.write_text(
        "".join(
            _table(
                "[[models]]",
                id=model.id,
                harness="embedded",
                source=str(model.path.parent),
                file=model.path.name,
                vram_mb=model.vram_mb,
            )
            for model in models
        ),
        encoding="utf-8",
    )
    files.neuron.write_text(
        _table("[neuron]", listen=_address(ports.neuron), state_dir=str(directory / "neuron"))
        + _table("[cpu]", offer=True, memory_mb=capacity_mb)
        + _table("[[harnesses]]", name="embedded"),
        encoding="utf-8",
    )
    return files


def _address(port: int) -> str:
    return f"127.0.0.1:{port}"


def _table(header: str, **values: str | float | bool | None) -> str:
    lines = [f"{k} = {toml_value(v)}" for k, v in values.items() if v is not None]
    return "\n".join([header, *lines]) + "\n\n"
