"""`cortex chat`: chat with a model."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cortex_cli import completion, options
from cortex_cli.client import GatewayTarget, fetch_fleet, run, target
from cortex_cli.inference import ChatChunk, Inference, Message
from cortex_cli.options import single_command
from cortex_cli.output import notify, stderr_paint
from cortex_common.errors import ModelNotFound
from cortex_common.schema.fleet import FleetSnapshot, ModelState
from cortex_common.units import format_duration

app = single_command()

_MIN_TOKENS_FOR_RATE = 10


@app.command(
    epilog="Examples: `cortex chat`, `cortex chat qwen3-32b 'why?'`, `cat x.py | cortex chat qwen3-32b review`"
)
def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="Default: a ready model", autocompletion=completion.models
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="Default: stdin, or a conversation on a terminal"),
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
            help="Put the text of this file before the prompt",
        ),
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="Sampling temperature")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Maximum response length")] = None,
    stats: Annotated[bool, typer.Option(help="Print the speed to stderr")] = True,
    gateway: options.Gateway = None,
) -> None:
    """Chat with a model."""
    where = target(gateway, os.environ)
    question = _question(prompt, file)
    settings = {"temperature": temperature, "max_tokens": max_tokens}
    history = [Message(role="system", content=system)] if system else []
    run(_chat(where, gateway, model, history, question, settings, stats=stats))


def _question(prompt: list[str] | None, file: Path | None) -> str | None:
    """Return the single question, or None for a conversation."""
    parts = (
        [_read_text(partial(file.read_text, encoding="utf-8"), str(file))]
        if file is not None
        else []
    )
    if not sys.stdin.isatty() and not file:
        piped = _read_text(sys.stdin.read, "stdin").strip()
        parts += [piped] if piped else []
    if prompt:
        parts.append(" ".join(prompt))
    if parts:
        return "\n\n".join(parts)
    if sys.stdin.isatty():
        return None
    raise typer.BadParameter("the prompt is empty: give a prompt or pipe a text")


def _read_text(read: Callable[[], str], source: str) -> str:
    try:
        text = read()
        text.encode()  # In the C locale, invalid UTF-8 is read as lone surrogates.
    except UnicodeError as error:
        raise typer.BadParameter(f"{source} is not UTF-8 text") from error
    return text


def pick_model(fleet: FleetSnapshot) -> str:
    """Return the default model: the first that is ready, else the first of the catalogue.

    Raises:
        ModelNotFound: the catalogue is empty.
    """
    ready = [m.id for m in fleet.models if m.state is ModelState.READY]
    models = [m.id for m in fleet.models]
    if not models:
        raise ModelNotFound("the gateway has no models", hints=("add a model to models.toml",))
    return (ready or models)[0]


async def _chat(
    where: GatewayTarget,
    gateway: str | None,
    model: str | None,
    history: list[Message],
    question: str | None,
    settings: dict[str, float | None],
    *,
    stats: bool,
) -> None:
    if model is None:
        model = pick_model(await fetch_fleet(gateway))
        notify(f"using {model}")
    async with Inference(where) as inference:
        if question is not None:
            messages = [*history, Message(role="user", content=question)]
            await _complete(inference, model, messages, settings, stats=stats)
            return
        notify("end the conversation with an empty line or ctrl-d")
        while line := _read_line():
            history.append(Message(role="user", content=line))
            answer = await _complete(inference, model, history, settings, stats=stats)
            history.append(Message(role="assistant", content=answer))


def _read_line() -> str:
    # To stderr, because input() would write the prompt to stdout, between the data.
    sys.stderr.write("> ")
    sys.stderr.flush()
    return sys.stdin.readline().strip()


async def _complete(
    inference: Inference,
    model: str,
    messages: list[Message],
    settings: dict[str, float | None],
    *,
    stats: bool,
) -> str:
    """Write a response to stdout as it arrives, and return it."""
    chunks: list[ChatChunk] = []
    async for chunk in inference.chat(model, messages, **settings):
        chunks.append(chunk)
        if chunk.thinking:
            sys.stderr.write(chunk.thinking)
            sys.stderr.flush()
        if chunk.text:
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if stats:
        notify(stderr_paint().dim(stats_line(model, chunks)))
    return "".join(chunk.text for chunk in chunks)


def stats_line(model: str, chunks: list[ChatChunk]) -> str:
    """Return model, node, tokens, time to the first token, and tokens per second of a response."""
    content = [c for c in chunks if c.text or c.thinking]
    usage = next((c.usage for c in reversed(chunks) if c.usage), None)
    facts = [model]
    if chunks and (node := chunks[0].headers.get("x-cortex-node")):
        facts.append(f"on {node}")
    count = usage.completion_tokens if usage else len(content)
    facts.append(f"{count} tokens" if usage else f"{count} chunks")
    if content:
        first, last = content[0].at, content[-1].at
        facts.append(f"first after {format_duration(first)}")
        if last > first and count >= _MIN_TOKENS_FOR_RATE:
            facts.append(f"{(count - 1) / (last - first):.1f}/s")
    return ", ".join(facts)
