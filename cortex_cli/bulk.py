"""What commands that change something share: names, questions, progress, and one line on each success."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from cortex_cli.client import connect
from cortex_cli.error_exit import PartialSuccess, describe, exit_code
from cortex_cli.output import Output, as_text, say, stderr_paint, stdout_paint
from cortex_cli.render.details import RESULTS, Result, failure
from cortex_cli.render.fleet import place, progress_text
from cortex_common.errors import CortexError, NotFound
from cortex_common.schema.fleet import FleetSnapshot, ModelView, NodeState
from cortex_common.schema.instances import InstanceState
from cortex_common.schema.operations import MAX_DURATION_S
from cortex_common.units import parse_duration

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient


def seconds_of(text: str, option: str, *, positive: bool = False) -> float:
    """The seconds of an option like --timeout 5m.

    Args:
        text: the duration.
        option: its name.
        positive: 0 makes no sense.

    Raises:
        BadParameter: the text is no duration, or none that makes sense.
    """
    try:
        seconds = parse_duration(text)
    except ValueError as failed:
        raise typer.BadParameter(str(failed), param_hint=option) from failed
    if positive and not seconds:
        raise typer.BadParameter("must be longer than 0", param_hint=option)
    if seconds > MAX_DURATION_S:
        raise typer.BadParameter(f"{text!r} is longer than a hundred years", param_hint=option)
    return seconds


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


@dataclass(frozen=True, slots=True)
class Things:
    """What patterns stand for.

    Attributes:
        word: for one of them.
        matching: the names in a fleet that a pattern matches.
        meant: whether one of those is meant; None for all.
    """

    word: str
    matching: Callable[[FleetSnapshot, str], list[str]]
    meant: Callable[[FleetSnapshot, str], bool] = lambda _fleet, _name: True


def _is_loaded(fleet: FleetSnapshot, name: str) -> bool:
    """Whether there is anything of it to end; servers of others are none of cortex's."""
    return any(
        instance.model == name and instance.state is not InstanceState.STOPPED
        for node in fleet.nodes
        if node.state is NodeState.UP and not node.upstream
        for instance in node.instances
    )


def _models(fleet: FleetSnapshot, pattern: str) -> list[str]:
    return [m.id for m in fleet.models if matches(m, pattern)]


def _nodes(fleet: FleetSnapshot, pattern: str) -> list[str]:
    return [n.name for n in fleet.nodes if fnmatchcase(n.name, pattern)]


def _has_neuron(fleet: FleetSnapshot, name: str) -> bool:
    node = fleet.node(name)
    return node is not None and not node.upstream


ANY_MODEL = Things("model", _models)
LOADED = Things("model", _models, _is_loaded)
ANY_NODE = Things("node", _nodes, _has_neuron)


def names_meant(
    fleet: FleetSnapshot, patterns: Sequence[str], things: Things | None = ANY_MODEL
) -> list[str]:
    """The names that are meant; a pattern stands for all things that it matches, "-" for the lines of stdin.

    Args:
        fleet: whose things patterns are matched with.
        patterns: names among them.
        things: what patterns stand for; None when there are no patterns.

    Raises:
        NotFound: a pattern matches nothing. A plain name is left to the gateway to judge.
    """
    found: list[str] = []
    for pattern in patterns:
        if pattern == "-":
            found += [line.strip() for line in sys.stdin if line.strip()]
        elif things is not None and is_pattern(pattern):
            hits = things.matching(fleet, pattern)
            if not hits:
                raise NotFound(f"no {things.word} matches {pattern!r}")
            found += [name for name in hits if things.meant(fleet, name)]
        else:
            found.append(pattern)
    return list(dict.fromkeys(found))


def is_pattern(name: str) -> bool:
    """Whether a word on the command line stands for several names."""
    return any(c in name for c in "*?[")


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb and how it is told.

    Attributes:
        action: its name, such as "load".
        output: for people a line each, for programs a `Result`.
        planned: it is only planned.
        things: what its patterns stand for; None when it takes no patterns.
        goes_on: said to those who interrupt what the gateway goes on with.
    """

    action: str
    output: Output
    things: Things | None = None
    planned: bool = False
    goes_on: str = ""


class Done(NamedTuple):
    """One thing that was done.

    Attributes:
        line: says so to people.
        answer: the gateway's.
    """

    line: str
    answer: Any


async def each(
    gateway: str | None,
    patterns: Sequence[str],
    verb: Verb,
    one: Callable[[OperatorClient, str], Awaitable[Done]],
) -> None:
    """Do something to each thing that is meant, and write what became of it.

    Args:
        gateway: URL or context.
        patterns: see `names_meant`.
        verb: what is done.
        one: does it.

    Raises:
        CortexError: the only one failed.
        Exit: all of several failed; each failure has been told.
        PartialSuccess: some of several failed; each failure has been told.
    """
    async with connect(gateway) as client:
        patterned = verb.things is not None and any(map(is_pattern, patterns))
        fleet = await client.fleet() if patterned else FleetSnapshot(0, 0.0)
        names = names_meant(fleet, patterns, verb.things)
        if not names:
            say("nothing that matches is loaded" if verb.things is LOADED else "nothing to do")
        failures: list[CortexError] = []
        results: list[Result] = []
        try:
            for name in names:
                result, failed = await _tried(client, name, verb, one)
                results.append(result)
                failures += [failed] if failed is not None else []
                if failed is not None and len(names) > 1:
                    say(describe(failed, stderr_paint()))
        finally:
            # What was done is told also by those who are interrupted.
            _write_results(results, verb.output)
    if failures and len(names) == 1:
        raise failures[0]
    if failures and len(failures) == len(names):
        raise typer.Exit(exit_code(failures[0]))
    if failures:
        raise PartialSuccess(f"{len(failures)} of {len(names)} failed")


async def _tried(
    client: OperatorClient,
    name: str,
    verb: Verb,
    one: Callable[[OperatorClient, str], Awaitable[Done]],
) -> tuple[Result, CortexError | None]:
    try:
        done = await one(client, name)
    except CortexError as failed:
        return Result(name, verb.action, "failed", error=failure(failed)), failed
    except asyncio.CancelledError:
        if verb.goes_on and not verb.planned:
            say(verb.goes_on)
        raise
    if verb.output in {Output.TABLE, Output.WIDE}:
        sys.stdout.write(f"{done.line}\n")
        sys.stdout.flush()
    return Result(name, verb.action, "planned" if verb.planned else "done", done.answer), None


def _write_results(results: Sequence[Result], output: Output) -> None:
    if output in {Output.TABLE, Output.WIDE}:
        return
    told = [r for r in results if r.error is None] if output is Output.NAME else results
    if text := as_text(RESULTS, told, output, paint=stdout_paint()):
        sys.stdout.write(f"{text}\n")


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
        async for snapshot in client.watch_fleet():
            parts = [
                f"{place(i)} {progress_text(i)}".strip()
                for i in snapshot.instances()
                if i.model == model and progress_text(i)
            ]
            sys.stderr.write(f"\r\x1b[Kloading {model} {'; '.join(parts)}")
            sys.stderr.flush()
