"""`cortex chat`: talk to a model; the quickest proof that the fleet answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cortex_cli import completion, options
from cortex_cli.client import Target, connect, run, target
from cortex_cli.inference import Inference, Message, Piece
from cortex_cli.options import verb
from cortex_cli.output import say, stdout_paint
from cortex_common.errors import ModelNotFound
from cortex_common.schema.fleet import FleetSnapshot, ModelState
from cortex_common.units import format_duration

app = verb()

_ENOUGH_FOR_A_RATE = 10


@app.command(
    epilog="Examples: `cortex chat`, `cortex chat qwen3-32b 'why?'`, `cat x.py | cortex chat qwen3-32b review`"
)
def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="Default: one that is ready", autocompletion=completion.models
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="What to ask; without it, a conversation or stdin"),
    ] = None,
    *,
    system: Annotated[str | None, typer.Option("--system", "-s", help="System prompt")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            exists=True,
            dir_okay=False,
            readable=True,
            help="Put this file's text before the prompt",
        ),
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="Sampling temperature")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer")] = None,
    stats: Annotated[bool, typer.Option(help="Say on stderr how fast it went")] = True,
    gateway: options.Gateway = None,
) -> None:
    """Talk to a model."""
    where = target(gateway, os.environ)
    asked = _question(prompt, file)
    settings = {"temperature": temperature, "max_tokens": max_tokens}
    history = [Message(role="system", content=system)] if system else []
    run(_talk(where, gateway, model, history, asked, settings, stats=stats))


def _question(prompt: list[str] | None, file: Path | None) -> str | None:
    """What is asked once; None when a person is to converse."""
    parts = (
        [_text(partial(file.read_text, encoding="utf-8"), str(file))] if file is not None else []
    )
    if not sys.stdin.isatty() and not file:
        piped = _text(sys.stdin.read, "what was piped").strip()
        parts += [piped] if piped else []
    if prompt:
        parts.append(" ".join(prompt))
    if parts:
        return "\n\n".join(parts)
    if sys.stdin.isatty():
        return None
    raise typer.BadParameter("there is nothing to ask: give a prompt or pipe a text")


def _text(read: Callable[[], str], what: str) -> str:
    try:
        text = read()
        text.encode()  # in the C locale, what is no UTF-8 is read as halves of characters
    except UnicodeError as failed:
        raise typer.BadParameter(f"{what} is not UTF-8 text") from failed
    return text


def pick_model(fleet: FleetSnapshot) -> str:
    """A model to talk to when none is named: one that is ready, else the first of the catalogue.

    Raises:
        ModelNotFound: the catalogue is empty.
    """
    ready = [m.id for m in fleet.models if m.state is ModelState.READY]
    every = [m.id for m in fleet.models]
    if not every:
        raise ModelNotFound("the gateway has no models", hints=("describe one in models.toml",))
    return (ready or every)[0]


async def _talk(
    where: Target,
    gateway: str | None,
    model: str | None,
    history: list[Message],
    asked: str | None,
    settings: dict[str, float | None],
    *,
    stats: bool,
) -> None:
    if model is None:
        async with connect(gateway) as client:
            model = pick_model(await client.fleet())
        say(f"talking to {model}")
    async with Inference(where) as inference:
        if asked is not None:
            await _turn(
                inference,
                model,
                [*history, Message(role="user", content=asked)],
                settings,
                stats=stats,
            )
            return
        say("an empty line or ctrl-d ends the conversation")
        while line := _read_line():
            history.append(Message(role="user", content=line))
            answer = await _turn(inference, model, history, settings, stats=stats)
            history.append(Message(role="assistant", content=answer))


def _read_line() -> str:
    # The prompt is talk, so it goes to stderr; input() would write it among the data.
    sys.stderr.write("> ")
    sys.stderr.flush()
    return sys.stdin.readline().strip()


async def _turn(
    inference: Inference,
    model: str,
    messages: list[Message],
    settings: dict[str, float | None],
    *,
    stats: bool,
) -> str:
    """Ask, write the answer to stdout as it comes, and return it."""
    pieces: list[Piece] = []
    async for piece in inference.chat(model, messages, **settings):
        pieces.append(piece)
        if piece.thinking:
            sys.stderr.write(piece.thinking)
            sys.stderr.flush()
        if piece.text:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if stats:
        say(stdout_paint().dim(stats_line(model, pieces)))
    return "".join(p.text for p in pieces)


def stats_line(model: str, pieces: list[Piece]) -> str:
    """How fast an answer came: tokens, time to the first, tokens a second, and where from."""
    spoken = [p for p in pieces if p.text or p.thinking]
    usage = next((p.usage for p in reversed(pieces) if p.usage), None)
    facts = [model]
    if pieces and (node := pieces[0].headers.get("x-cortex-node")):
        facts.append(f"on {node}")
    count = usage.completion_tokens if usage else len(spoken)
    facts.append(f"{count} tokens" if usage else f"{count} chunks")
    if spoken:
        first, last = spoken[0].at, spoken[-1].at
        facts.append(f"first after {format_duration(first)}")
        if last > first and count >= _ENOUGH_FOR_A_RATE:
            facts.append(f"{(count - 1) / (last - first):.1f}/s")
    return ", ".join(facts)
