"""What the demo's fleet is made of: ports, models and the three configuration files."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cortex_cli.render.formats import toml_value
from cortex_common.units import bytes_to_mib

TINY_MODELS = ("demo/ada", "demo/bob", "demo/cleo")
TINY_MODEL_MB = 256
"""MiB that the process of a tiny model takes: an interpreter, the engine, and its weights."""

ROOM_MB = 2 * TINY_MODEL_MB + 8
"""Two of the three fit, so that a demo shows what happens when room runs out."""

_CONTEXT = 1024
"""Tokens of a conversation. Models of noise have nothing to say, and go on until there is no more room."""

NODE = "here"


@dataclass(frozen=True, slots=True)
class Ports:
    """Loopback ports of the demo."""

    api: int = 8000
    metrics: int = 9100
    neuron: int = 9090


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_ports(wanted: Ports) -> tuple[Ports, list[str]]:
    """The wanted ports, or free ones in place of those that are taken, and a sentence on each change."""
    said: list[str] = []
    found: list[int] = []
    # Held until all are chosen, so that the same port is not given twice.
    held: list[socket.socket] = []
    try:
        for name, port in (
            ("gateway", wanted.api),
            ("metrics", wanted.metrics),
            ("neuron", wanted.neuron),
        ):
            if is_free(port):
                found.append(port)
                continue
            probe = socket.socket()
            held.append(probe)
            probe.bind(("127.0.0.1", 0))
            found.append(int(probe.getsockname()[1]))
            said.append(f"port {port} is taken; the {name} takes {found[-1]}")
    finally:
        for probe in held:
            probe.close()
    return Ports(*found), said


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A model of the demo's catalogue.

    Attributes:
        vram_mb: MiB that it is expected to take.
    """

    id: str
    path: Path
    vram_mb: int


def write_models(directory: Path) -> list[DemoModel]:
    """Write the tiny models: random weights, a real tokenizer, the real engine's format."""
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


def own_model(path: Path) -> DemoModel:
    """A model of the user's."""
    # Weights, and about as much again for what the engine computes with.
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
    directory: Path, ports: Ports, models: Iterable[DemoModel], room_mb: int | None
) -> DemoFiles:
    """Write cortex.toml, models.toml and neuron.toml.

    Args:
        directory: where they go; the neuron keeps its records below it.
        ports: to listen on.
        models: the catalogue.
        room_mb: MiB that engines may use; None for what the host has.
    """
    files = DemoFiles(
        directory / "cortex.toml", directory / "models.toml", directory / "neuron.toml"
    )
    files.gateway.write_text(
        _table("[gateway]", listen=_at(ports.api), metrics_listen=_at(ports.metrics))
        # So that the eviction of the third model is seen at once, and not after the usual half minute.
        + _table("[eviction]", min_residency=0)
        + _table("[[neurons]]", name=NODE, endpoint=f"http://{_at(ports.neuron)}"),
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
        _table("[neuron]", listen=_at(ports.neuron), state_dir=str(directory / "neuron"))
        + _table("[cpu]", offer=True, memory_mb=room_mb)
        + _table("[[harnesses]]", name="embedded"),
        encoding="utf-8",
    )
    return files


def _at(port: int) -> str:
    return f"127.0.0.1:{port}"


def _table(header: str, **values: str | float | bool | None) -> str:
    lines = [f"{k} = {toml_value(v)}" for k, v in values.items() if v is not None]
    return "\n".join([header, *lines]) + "\n\n"
