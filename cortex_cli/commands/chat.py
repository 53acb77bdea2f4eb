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
from cortex_cli.chat.conversation import Conversation
from cortex_cli.chat.prompt import prompt_for_terminal
from cortex_cli.chat.session import ChatSession
from cortex_cli.client import GatewayTarget, fetch_fleet, run, target
from cortex_cli.inference import Inference
from cortex_cli.options import single_command
from cortex_cli.output import notify
from cortex_cli.terminal import neutralize_line
from cortex_common.errors import ModelNotFound
from cortex_common.schema.fleet import FleetSnapshot, ModelState

app = single_command()


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
    conversation = Conversation(model or "", system or "")
    run(_chat(where, gateway, conversation, question, settings, stats=stats))


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
    conversation: Conversation,
    question: str | None,
    settings: dict[str, float | None],
    *,
    stats: bool,
) -> None:
    if not conversation.model:
        conversation.model = pick_model(await fetch_fleet(gateway))
        notify(f"using {neutralize_line(conversation.model)}")
    async with Inference(where) as inference:
        session = ChatSession(inference, conversation, settings, statistics=stats)
        if question is None:
            await session.converse(prompt_for_terminal(os.environ))
        else:
            await session.answer_once(question)
