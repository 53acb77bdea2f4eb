"""A conversation on a terminal: reads messages, streams responses, and runs slash commands."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path

from cortex_cli.chat.conversation import SLASH_COMMANDS, Conversation, SlashCommand, parse_line
from cortex_cli.chat.display import display_for_stdout
from cortex_cli.chat.prompt import Prompt
from cortex_cli.chat.statistics import statistics_line
from cortex_cli.error_exit import describe
from cortex_cli.inference import ChatChunk, Inference, Message
from cortex_cli.output import notify, stderr_colors
from cortex_cli.terminal import neutralize_line
from cortex_common.errors import BadRequest, CortexError

Options = Mapping[str, float | None]


class ChatSession:
    """Runs a conversation.

    Args:
        inference: connection to the gateway.
        conversation: its beginning.
        options: further fields of each request, such as temperature and max_tokens.
        statistics: whether to write a line of statistics after each response.
    """

    def __init__(
        self,
        inference: Inference,
        conversation: Conversation,
        options: Options,
        *,
        statistics: bool,
    ) -> None:
        self._inference = inference
        self._conversation = conversation
        self._options = options
        self._statistics = statistics

    async def answer_once(self, question: str) -> None:
        """Answer a single question.

        Raises:
            CortexError: the request failed.
        """
        await self._stream(self._conversation.request(question), [])

    async def converse(self, prompt: Prompt) -> None:
        """Answer messages until the user ends the conversation."""
        notify("/help: commands, alt-enter: new line, ctrl-c: stop, ctrl-d: end")
        while True:
            try:
                line = await prompt.read()
                if line is None:
                    return
                if line and not await self._handle(parse_line(line)):
                    return
            except KeyboardInterrupt:
                notify("ctrl-d or /exit ends the conversation")
            except CortexError as error:
                notify(describe(error, stderr_colors()))

    async def _handle(self, line: SlashCommand | str) -> bool:
        """Answer a message or run a command; return whether the conversation continues."""
        if isinstance(line, str):
            await self._answer(line)
            return True
        if line.name == "/exit":
            return False
        self._run_command(line)
        return True

    async def _answer(self, question: str) -> None:
        """Answer a message; ctrl-c stops the response and keeps what has arrived."""
        chunks: list[ChatChunk] = []
        response = asyncio.ensure_future(self._stream(self._conversation.request(question), chunks))
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, response.cancel)
        try:
            await asyncio.wait({response})
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            # Also when the failure is raised below: the beginning of an answer is part of the conversation.
            self._conversation.add(question, "".join(chunk.text for chunk in chunks))
        if response.cancelled():
            notify("stopped")
        else:
            response.result()

    async def _stream(self, messages: list[Message], chunks: list[ChatChunk]) -> None:
        """Display a response as it arrives, and collect its chunks."""
        model = self._conversation.model
        with display_for_stdout() as display:
            response = self._inference.chat(model, messages, display.wait, **self._options)
            async for chunk in response:
                chunks.append(chunk)
                display.add(chunk.text, chunk.thinking)
        if self._statistics:
            notify(stderr_colors().dim(neutralize_line(statistics_line(model, chunks))))

    def _run_command(self, command: SlashCommand) -> None:
        conversation, argument = self._conversation, command.argument
        match command.name:
            case "/help":
                notify("\n".join(f"{usage:<16} {text}" for usage, text in SLASH_COMMANDS.items()))
            case "/model":
                conversation.model = argument or conversation.model
                notify(f"using {neutralize_line(conversation.model)}")
            case "/system":
                conversation.system = argument or conversation.system
                notify(f"system prompt: {neutralize_line(conversation.system) or 'none'}")
            case "/clear":
                conversation.messages.clear()
                notify("the conversation is empty")
            case "/save":
                notify(f"saved to {save(conversation, argument)}")


def save(conversation: Conversation, path: str) -> Path:
    """Write a conversation to a new file and return its path.

    Raises:
        BadRequest: there is no path, the file exists, or it can't be written.
    """
    if not path:
        raise BadRequest("the name of the file is missing", hints=("/save FILE",))
    file = Path(path).expanduser()
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(conversation.to_markdown())
    except OSError as error:
        raise BadRequest(f"{file} can't be written: {error.strerror}") from error
    return file
