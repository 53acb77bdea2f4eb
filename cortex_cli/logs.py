"""Selection and output of logs: of the gateway, a node, or a model's engine."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cortex_cli.color import Colors
from cortex_cli.output import stdout_colors
from cortex_cli.render.log import format_engine_line, format_line
from cortex_common.errors import NotFound, nearest_names
from cortex_common.schema.fleet import FleetSnapshot

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient

GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class LogSource:
    """A log: of a model's engine if `model` is set, else of a node's daemon if `node` is set, else of the gateway.

    Attributes:
        node: name of the node.
        model: id of the model.
        instance: instance of the model; None for the one that started last.
    """

    node: str | None = None
    model: str | None = None
    instance: str | None = None


def log_source(name: str, fleet: FleetSnapshot) -> LogSource:
    """Return the log that "gateway", "beast", "qwen3-32b" or "beast/qwen3-32b" names.

    Raises:
        NotFound: there is no gateway, node, model or instance of that name.
    """
    if name == GATEWAY:
        return LogSource()
    if fleet.node(name) is not None:
        return LogSource(node=name)
    if (model := fleet.model(name)) is not None:
        return LogSource(model=model.id)
    node_name, _, model_name = name.partition("/")
    node, model = fleet.node(node_name), fleet.model(model_name)
    if node is None or model is None:
        names = [GATEWAY, *(n.name for n in fleet.nodes), *(m.id for m in fleet.models)]
        close = nearest_names(name, names)
        hint = f"did you mean {close[0]!r}?" if close else "use gateway, a node, or a model"
        raise NotFound(f"there is no log of {name!r}", hints=(hint,))
    instances = [i for i in node.instances if i.model == model.id]
    if not instances:
        raise NotFound(
            f"model {model.id!r} has no instance on {node_name}",
            hints=("`cortex ps -o wide` lists instances",),
        )
    latest = max(instances, key=lambda i: i.started_at)
    return LogSource(node=node_name, model=model.id, instance=latest.id)


_LINE_ENDS = re.compile(r"\r?\n|\r(?=[^\n])")


async def write_engine_log(chunks: AsyncIterable[str]) -> None:
    """Write an engine's log line by line as it arrives; each update of a progress bar is a line."""
    colors, rest = stdout_colors(), ""
    async for chunk in chunks:
        *lines, rest = _LINE_ENDS.split(rest + chunk)
        sys.stdout.write("".join(f"{format_engine_line(line, colors)}\n" for line in lines))
        sys.stdout.flush()
    sys.stdout.write(format_engine_line(rest, colors))


async def log_text(client: OperatorClient, name: str, *, lines: int) -> AsyncGenerator[str]:
    """Yield the last lines of a log as text, then new ones.

    Args:
        client: client of the gateway.
        name: see `log_source`.
        lines: number of past lines.

    Raises:
        CortexError: the log is unavailable.
    """
    source = log_source(name, await client.fleet())
    if source.model is not None:
        async with client.log(
            source.model, lines=lines, follow=True, instance=source.instance
        ) as chunks:
            async for chunk in chunks:
                yield chunk
        return
    async with client.daemon_log(source.node, lines=lines, follow=True) as log_lines:
        async for line in log_lines:
            yield f"{format_line(line, Colors())}\n"
