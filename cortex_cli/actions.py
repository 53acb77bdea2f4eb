"""What commands that change something share: names, questions, progress, and one line on each success."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import typer

from cortex_cli.client import connect
from cortex_cli.failure import PartialSuccess, describe, exit_code
from cortex_cli.listing import say, stdout_paint
from cortex_cli.render.fleet import place, progress_text
from cortex_common.errors import CortexError, NotFound
from cortex_common.fleet import FleetSnapshot, ModelView
from cortex_common.units import parse_duration

if TYPE_CHECKING:
    from cortex_common.operator_client import OperatorClient


def seconds_of(text: str, option: str) -> float:
    """The seconds of an option like --timeout 5m.

    Raises:
        BadParameter: the text is no duration.
    """
    try:
        return parse_duration(text)
    except ValueError as failed:
        raise typer.BadParameter(str(failed), param_hint=option) from failed


def device_indices(node: str | None, gpus: Sequence[str]) -> tuple[str | None, tuple[int, ...]]:
    """Node and device indices of --node beast and --gpu beast/0 --gpu beast/1.

    Raises:
        BadParameter: a device is not of the form node/index, or they are on several nodes.
    """
    indices = []
    for gpu in gpus:
        name, slash, index = gpu.rpartition("/")
        if not slash or not index.isdigit():
            raise typer.BadParameter(f"{gpu!r} is not a device like beast/0", param_hint="--gpu")
        if node is not None and name != node:
            raise typer.BadParameter(f"{gpu!r} is not on {node!r}", param_hint="--gpu")
        node = name
        indices.append(int(index))
    return node, tuple(indices)


def matches(model: ModelView, pattern: str) -> bool:
    """Whether a pattern like "qwen*" means the model, by its name or an alias."""
    return any(fnmatchcase(name, pattern) for name in (model.id, *model.aliases))


def names_meant(
    fleet: FleetSnapshot, patterns: Sequence[str], *, loaded: bool = False
) -> list[str]:
    """The names that are meant; a pattern stands for all models that it matches, "-" for the lines of stdin.

    Args:
        fleet: whose models patterns are matched with.
        patterns: names among them.
        loaded: patterns stand for models with an instance alone.

    Raises:
        NotFound: a pattern matches no model. A plain name is left to the gateway to judge.
    """
    found: list[str] = []
    for pattern in patterns:
        if pattern == "-":
            found += [line.strip() for line in sys.stdin if line.strip()]
        elif any(c in pattern for c in "*?["):
            hits = [m for m in fleet.models if matches(m, pattern)]
            if not hits:
                raise NotFound(f"no model matches {pattern!r}")
            found += [m.id for m in hits if m.instances or not loaded]
        else:
            found.append(pattern)
    return list(dict.fromkeys(found))


async def each(
    gateway: str | None,
    patterns: Sequence[str],
    one: Callable[[OperatorClient, str], Awaitable[str]],
    *,
    loaded: bool = False,
) -> None:
    """Do something to each model that is meant, and print its line.

    Args:
        gateway: URL or context.
        patterns: see `names_meant`.
        one: does it, and says so.
        loaded: see `names_meant`.

    Raises:
        CortexError: the only one failed.
        Exit: all of several failed; each failure has been told.
        PartialSuccess: some of several failed; each failure has been told.
    """
    async with connect(gateway) as client:
        patterned = any(c in p for p in patterns for c in "*?[")
        fleet = await client.fleet() if patterned else FleetSnapshot(0, 0.0)
        names = names_meant(fleet, patterns, loaded=loaded)
        if not names:
            say("nothing that matches is loaded" if loaded else "nothing to do")
        failures: list[CortexError] = []
        for name in names:
            try:
                line = await one(client, name)
            except CortexError as failed:
                if len(names) == 1:
                    raise
                failures.append(failed)
                say(describe(failed, stdout_paint()))
            else:
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
    if failures and len(failures) == len(names):
        raise typer.Exit(exit_code(failures[0]))
    if failures:
        raise PartialSuccess(f"{len(failures)} of {len(names)} failed")


def confirm(question: str, *, yes: bool) -> None:
    """Ask before traffic is disturbed.

    Raises:
        BadParameter: there is nobody to ask.
        Abort: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"{question} Nobody is there to answer: say --yes")
    typer.confirm(question, abort=True, err=True)


@asynccontextmanager
async def progress(client: OperatorClient, model: str) -> AsyncIterator[None]:
    """Show on a terminal how the loads of a model go while the block runs."""
    if not sys.stderr.isatty():
        yield
        return
    task = asyncio.create_task(_show_progress(client, model))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        sys.stderr.write("\r\x1b[K")


async def _show_progress(client: OperatorClient, model: str) -> None:
    # The load itself reports what goes wrong; a lost progress line is not worth a word.
    with suppress(CortexError):
        async for snapshot in client.fleet_events():
            parts = [
                f"{place(i)} {progress_text(i)}".strip()
                for i in snapshot.instances()
                if i.model == model and progress_text(i)
            ]
            sys.stderr.write(f"\r\x1b[Kloading {model} {'; '.join(parts)}")
            sys.stderr.flush()
