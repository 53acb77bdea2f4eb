"""Shared parts of commands that act on several names: patterns, confirmation, progress and results."""

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
from cortex_cli.output import notify, stderr_colors, stdout_colors
from cortex_cli.render.details import RESULTS, Result, to_failure
from cortex_cli.render.fleet import place, progress_text
from cortex_cli.render.output_format import OutputFormat, format_items
from cortex_cli.terminal import write_err, write_out
from cortex_common.errors import CortexError, NotFound
from cortex_common.schema.bounds import MAX_DURATION_S
from cortex_common.schema.fleet import FleetSnapshot, ModelView, NodeState
from cortex_common.schema.instances import InstanceState
from cortex_common.units import parse_duration

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient


def parse_seconds(text: str, option: str, *, positive: bool = False) -> float:
    """Return the seconds of a duration option such as --timeout 5m.

    Args:
        text: the duration.
        option: name of the option, for errors.
        positive: whether 0 is invalid.

    Raises:
        BadParameter: the text is not a valid duration.
    """
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
    if positive and not seconds:
        raise typer.BadParameter("must be longer than 0", param_hint=option)
    if seconds > MAX_DURATION_S:
        raise typer.BadParameter(f"{text!r} is longer than 100 years", param_hint=option)
    return seconds


def parse_devices(node: str | None, gpus: Sequence[str]) -> tuple[str | None, tuple[int, ...]]:
    """Return node and device indices of options such as --node beast or --gpu beast/0 --gpu beast/1.

    Raises:
        BadParameter: a device does not have the form NODE/INDEX, or the devices are on several nodes.
    """
    indices = []
    for gpu in gpus:
        name, slash, index = gpu.rpartition("/")
        if not slash or not index.isdigit():
            raise typer.BadParameter(f"{gpu!r} is not a device such as beast/0", param_hint="--gpu")
        if node is not None and name != node:
            raise typer.BadParameter(f"{gpu!r} is not on {node!r}", param_hint="--gpu")
        node = name
        indices.append(int(index))
    return node, tuple(indices)


def matches(model: ModelView, pattern: str) -> bool:
    """Return whether a pattern such as "qwen*" matches a model's name or an alias."""
    return any(fnmatchcase(name, pattern) for name in (model.id, *model.aliases))


@dataclass(frozen=True, slots=True)
class TargetKind:
    """A kind of targets that patterns are matched with.

    Attributes:
        noun: name of the kind, for errors.
        find: returns the names in a fleet that match a pattern.
        applies: whether an action applies to one of the matches; by default it does.
    """

    noun: str
    find: Callable[[FleetSnapshot, str], list[str]]
    applies: Callable[[FleetSnapshot, str], bool] = lambda _fleet, _name: True


def _is_loaded(fleet: FleetSnapshot, name: str) -> bool:
    """Return whether a model has an instance on a node that cortex manages; upstreams do not count."""
    return any(
        instance.model == name and instance.state is not InstanceState.STOPPED
        for node in fleet.nodes
        if node.state is NodeState.UP and not node.upstream
        for instance in node.instances
    )


def _find_models(fleet: FleetSnapshot, pattern: str) -> list[str]:
    return [m.id for m in fleet.models if matches(m, pattern)]


def _find_nodes(fleet: FleetSnapshot, pattern: str) -> list[str]:
    return [n.name for n in fleet.nodes if fnmatchcase(n.name, pattern)]


def _has_neuron(fleet: FleetSnapshot, name: str) -> bool:
    node = fleet.node(name)
    return node is not None and not node.upstream


MODELS = TargetKind("model", _find_models)
LOADED_MODELS = TargetKind("model", _find_models, _is_loaded)
NODES = TargetKind("node", _find_nodes, _has_neuron)


def resolve_names(
    fleet: FleetSnapshot, patterns: Sequence[str], targets: TargetKind | None = MODELS
) -> list[str]:
    """Expand patterns to the names that they match, and "-" to the lines of stdin.

    Args:
        fleet: the fleet that patterns are matched with.
        patterns: names and patterns.
        targets: what patterns are matched with; None if patterns are not supported.

    Raises:
        NotFound: a pattern matches nothing. Plain names are validated by the gateway.
    """
    names: list[str] = []
    for pattern in patterns:
        if pattern == "-":
            names += [line.strip() for line in sys.stdin if line.strip()]
        elif targets is not None and is_pattern(pattern):
            matching = targets.find(fleet, pattern)
            if not matching:
                raise NotFound(f"no {targets.noun} matches {pattern!r}")
            names += [name for name in matching if targets.applies(fleet, name)]
        else:
            names.append(pattern)
    return list(dict.fromkeys(names))


def is_pattern(name: str) -> bool:
    """Return whether an argument is a pattern."""
    return any(c in name for c in "*?[")


@dataclass(frozen=True, slots=True)
class BulkAction:
    """An action on several names.

    Attributes:
        name: name of the action, such as "load".
        output: format of the results: one line per success for people, `Result` objects for programs.
        targets: what patterns are matched with; None if patterns are not supported.
        dry_run: whether the action is only planned.
        detach_message: message after an interrupt, if the gateway continues the action.
    """

    name: str
    output: OutputFormat
    targets: TargetKind | None = None
    dry_run: bool = False
    detach_message: str = ""


class Outcome(NamedTuple):
    """The outcome of an action on one name.

    Attributes:
        line: the success, for people.
        result: response of the gateway.
    """

    line: str
    result: Any


async def run_bulk(
    gateway: str | None,
    patterns: Sequence[str],
    action: BulkAction,
    run_one: Callable[[OperatorClient, str], Awaitable[Outcome]],
) -> None:
    """Run an action on each name that is given, and write the results.

    Args:
        gateway: URL or context.
        patterns: names and patterns; see `resolve_names`.
        action: the action.
        run_one: runs it on one name.

    Raises:
        CortexError: the action on the only name failed.
        Exit: the action failed on all of several names; each error has been written.
        PartialSuccess: the action failed on some of several names; each error has been written.
    """
    async with connect(gateway) as client:
        has_patterns = action.targets is not None and any(map(is_pattern, patterns))
        fleet = await client.fleet() if has_patterns else FleetSnapshot(0, 0.0)
        names = resolve_names(fleet, patterns, action.targets)
        if not names:
            loaded = action.targets is LOADED_MODELS
            notify("no matching model is loaded" if loaded else "nothing to do")
        failures: list[CortexError] = []
        results: list[Result] = []
        try:
            for name in names:
                result, error = await _try(client, name, action, run_one)
                results.append(result)
                failures += [error] if error is not None else []
                if error is not None and len(names) > 1:
                    notify(describe(error, stderr_colors()))
        finally:
            # Also after an interrupt: the completed actions have taken effect.
            _write_results(results, action.output)
    if failures and len(names) == 1:
        raise failures[0]
    if failures and len(failures) == len(names):
        raise typer.Exit(exit_code(failures[0]))
    if failures:
        raise PartialSuccess(f"{len(failures)} of {len(names)} failed")


async def _try(
    client: OperatorClient,
    name: str,
    action: BulkAction,
    run_one: Callable[[OperatorClient, str], Awaitable[Outcome]],
) -> tuple[Result, CortexError | None]:
    try:
        outcome = await run_one(client, name)
    except CortexError as error:
        return Result(name, action.name, "failed", error=to_failure(error)), error
    except asyncio.CancelledError:
        if action.detach_message and not action.dry_run:
            notify(action.detach_message)
        raise
    if action.output.tabular:
        write_out(f"{outcome.line}\n")
        sys.stdout.flush()
    return Result(name, action.name, "planned" if action.dry_run else "done", outcome.result), None


def _write_results(results: Sequence[Result], output: OutputFormat) -> None:
    if output.tabular:
        return
    names_only = output is OutputFormat.NAME
    written = [r for r in results if r.error is None] if names_only else results
    if text := format_items(RESULTS, written, output, colors=stdout_colors()):
        write_out(f"{text}\n")


def confirm(question: str, *, yes: bool) -> None:
    """Ask for confirmation before an action that disrupts traffic.

    Raises:
        BadParameter: stdin is not a terminal.
        Abort: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            f"{question} stdin is not a terminal; pass --yes to confirm", param_hint="--yes"
        )
    typer.confirm(question, abort=True, err=True)


_CLEAR_LINE = "\r\x1b[K"


@asynccontextmanager
async def show_progress(client: OperatorClient, model: str) -> AsyncIterator[None]:
    """Show the progress of a model's loads on a terminal while the block runs."""
    if not sys.stderr.isatty():
        yield
        return
    task = asyncio.create_task(_write_progress(client, model))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        sys.stderr.write(_CLEAR_LINE)


async def _write_progress(client: OperatorClient, model: str) -> None:
    # Errors are reported by the load itself; a missing progress line needs no message.
    with suppress(CortexError):
        async for snapshot in client.watch_fleet():
            loads = [
                f"{place(i)} {progress_text(i)}".strip()
                for i in snapshot.instances()
                if i.model == model and progress_text(i)
            ]
            sys.stderr.write(_CLEAR_LINE)
            write_err(f"loading {model} {'; '.join(loads)}")
            sys.stderr.flush()
