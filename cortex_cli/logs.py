"""Which log a name means: the gateway's, a node's, or that of a model's engine."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cortex_cli.color import Paint
from cortex_cli.output import stdout_paint
from cortex_cli.render.log import engine_line, line_text
from cortex_common.errors import NotFound, nearest_names
from cortex_common.schema.fleet import FleetSnapshot

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient

GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class LogOf:
    """Whose log is meant: of a model's engine, else of a node's daemon, else of the gateway.

    Attributes:
        instance: of the model; None for the one that started last.
    """

    node: str | None = None
    model: str | None = None
    instance: str | None = None


def log_of(name: str, fleet: FleetSnapshot) -> LogOf:
    """What is meant by "gateway", "beast", "qwen3-32b" or "beast/qwen3-32b".

    Raises:
        NotFound: nothing goes by that name.
    """
    if name == GATEWAY:
        return LogOf()
    if fleet.node(name) is not None:
        return LogOf(node=name)
    if (model := fleet.model(name)) is not None:
        return LogOf(model=model.id)
    place, _, rest = name.partition("/")
    node, model = fleet.node(place), fleet.model(rest)
    if node is None or model is None:
        known = [GATEWAY, *(n.name for n in fleet.nodes), *(m.id for m in fleet.models)]
        close = nearest_names(name, known)
        hint = f"did you mean {close[0]!r}?" if close else "say gateway, a node, or a model"
        raise NotFound(f"nothing that logs is called {name!r}", hints=(hint,))
    there = [i for i in node.instances if i.model == model.id]
    if not there:
        raise NotFound(
            f"model {model.id!r} has no instance on {place}",
            hints=("`cortex ps -o wide` lists instances",),
        )
    latest = max(there, key=lambda i: i.started_at)
    return LogOf(node=place, model=model.id, instance=latest.id)


_ENDS = re.compile(r"\r?\n|\r(?=[^\n])")


async def write_engine_log(pieces: AsyncIterable[str]) -> None:
    """Write what an engine wrote, line by line as it comes; each state of a progress bar is a line."""
    paint, rest = stdout_paint(), ""
    async for piece in pieces:
        *lines, rest = _ENDS.split(rest + piece)
        sys.stdout.write("".join(f"{engine_line(line, paint)}\n" for line in lines))
        sys.stdout.flush()
    sys.stdout.write(engine_line(rest, paint))


async def log_text(client: OperatorClient, name: str, *, lines: int) -> AsyncGenerator[str]:
    """The last lines of a log as people read it, and whatever comes.

    Raises:
        CortexError: it is not to be had.
    """
    found = log_of(name, await client.fleet())
    if found.model is not None:
        async with client.log(
            found.model, lines=lines, follow=True, instance=found.instance
        ) as pieces:
            async for piece in pieces:
                yield piece
        return
    async with client.daemon_log(found.node, lines=lines, follow=True) as told:
        async for line in told:
            yield f"{line_text(line, Paint())}\n"
