"""Writer of Responses API streams.

The grammar: `response.created`, `response.in_progress`, then each item without interruption (added, its parts and
deltas, done), then exactly one of `response.completed`, `response.incomplete`, `response.failed`, and `[DONE]`, which
Open Responses requires and other clients skip. Each event has an increasing `sequence_number`. Observed: Codex displays
an item when it is done, and repeats the whole request if the last event is missing or a failure.

A failure is reported twice, because no event is noticed by all clients. Codex wants `response.failed`. The official
SDKs, LangChain and others take that for the end of a whole answer, and raise an exception for `error`; some look for
its message in the event itself, as OpenAI's document says, others in its field `error`, as OpenAI's servers send it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import msgspec
from msgspec import Struct
from typing_extensions import override

from cortex_common.errors import CortexError, envelope
from cortex_common.sse import COMMENT, DONE, write_event
from cortex_server.dialects.chat import ToolName
from cortex_server.dialects.responses.resource import (
    CustomToolCallItem,
    FunctionCallItem,
    Item,
    ItemStatus,
    MessageItem,
    OutputText,
    ReasoningItem,
    Response,
    SummaryText,
    to_usage,
)
from cortex_server.dialects.responses.response import (
    finish,
    finish_tool_call,
    start_tool_call,
    to_error,
)
from cortex_server.dialects.stream.writer import StreamWriter
from cortex_server.dialects.tool_calls import ToolCallIds

_encode = msgspec.json.encode


class ErrorPayload(Struct):
    """The error in an `error` event."""

    type: str
    code: str
    message: str
    param: str | None


class ResponsesStreamWriter(StreamWriter):
    """Writes the stream of POST /v1/responses.

    Attributes:
        response: the response so far.
    """

    def __init__(
        self,
        response: Response,
        *,
        call_ids: Collection[str] = (),
        only_first_call: bool = False,
        tool_names: Mapping[str, ToolName] | None = None,
        now: Callable[[], float],
        prompt_tokens: int = 0,
        on_complete: Callable[[Response], None] = lambda _: None,
    ) -> None:
        """Start a stream.

        Args:
            response: as `new_response` returns it.
            call_ids: see `TranslatedRequest`.
            only_first_call: see `TranslatedRequest`.
            tool_names: see `TranslatedRequest`.
            now: returns Unix seconds.
            prompt_tokens: an estimate, for engines that report no usage.
            on_complete: called with a complete response.
        """
        super().__init__(only_first_call=only_first_call)
        self.response = response
        self._tool_names = tool_names or {}
        self._ids = ToolCallIds(call_ids, response.id, "call")
        self._now = now
        self._prompt_tokens = prompt_tokens
        self._on_complete = on_complete
        self._open_item: Item | None = None
        self._texts: list[str] = []
        self._sequence_number = 0

    @override
    def on_reasoning(self, text: str) -> None:
        if not isinstance(self._open_item, ReasoningItem):
            self._start_item(ReasoningItem(f"rs_{self._id_suffix()}", [], "in_progress"))
            part = b',"summary_index":0,"part":{"type":"summary_text","text":""}'
            self._write_open_item("response.reasoning_summary_part.added", part)
        self._write_delta("response.reasoning_summary_text.delta", b',"summary_index":0', text)

    @override
    def on_text(self, text: str) -> None:
        if not isinstance(self._open_item, MessageItem):
            self._start_item(MessageItem(f"msg_{self._id_suffix()}", "in_progress", []))
            part = b',"content_index":0,"part":' + _encode(OutputText(""))
            self._write_open_item("response.content_part.added", part)
        self._write_delta("response.output_text.delta", b',"content_index":0,"logprobs":[]', text)

    @override
    def on_tool_call(self, position: int, engine_id: str, name: str) -> None:
        call_id = self._ids.assign(engine_id)
        self._start_item(start_tool_call(name, self._id_suffix(), call_id, self._tool_names))

    @override
    def on_arguments(self, text: str) -> None:
        if isinstance(self._open_item, CustomToolCallItem):
            self._texts.append(text)  # the input is inside a JSON string
        else:
            self._write_delta("response.function_call_arguments.delta", b"", text)

    @override
    def _write_start(self) -> None:
        self._write_response("response.created")
        self._write_response("response.in_progress")

    @override
    def _write_ping(self) -> None:
        self._out += COMMENT

    @override
    def _write_end(self) -> None:
        reader, response = self._reader, self.response
        finish(response, reader.finish_reason, self._now())
        self._finish_item("completed" if response.status == "completed" else "incomplete")
        response.usage = to_usage(reader.usage, self._prompt_tokens)
        self._write_response(f"response.{response.status}")
        self._out += DONE
        self._on_complete(response)

    @override
    def _write_error(self, error: CortexError) -> None:
        if not self.started:
            self._write_start()
        # The open item is not finished: Codex would keep the partial item in its history, and retry.
        response = self.response
        response.status, response.error = "failed", to_error(error)
        if self._reader.usage is not None:
            response.usage = to_usage(self._reader.usage)
        error_type = envelope(error)["error"]["type"]
        code, message = response.error.code, response.error.message
        payload = ErrorPayload(error_type, code, message, error.param)
        fields = b',"code":%b,"message":%b,"param":%b,"error":%b}'
        values = (_encode(code), _encode(message), _encode(error.param), _encode(payload))
        self._write_event("error", fields % values)
        self._write_response("response.failed")
        self._out += DONE

    def _start_item(self, item: Item) -> None:
        self._start()
        self._finish_item("completed")
        self._open_item = item
        self._write_item("response.output_item.added", item)

    def _finish_item(self, status: ItemStatus) -> None:
        """Finish the open item, with the events that repeat its whole content."""
        item = self._open_item
        if item is None:
            return
        text = "".join(self._texts)
        match item:
            case MessageItem():
                self._finish_message(item, text)
            case ReasoningItem():
                self._finish_reasoning(item, text)
            case FunctionCallItem():
                finish_tool_call(item, text, status)
                fields = (
                    b',"name":' + _encode(item.name) + b',"arguments":' + _encode(item.arguments)
                )
                self._write_open_item("response.function_call_arguments.done", fields)
            case CustomToolCallItem():
                finish_tool_call(item, text, status)
                self._write_custom_input(item.input)
        item.status = status
        self._write_item("response.output_item.done", item)
        self.response.output.append(item)
        self._open_item = None
        self._texts.clear()

    def _finish_message(self, item: MessageItem, text: str) -> None:
        part = OutputText(text)
        item.content.append(part)
        fields = b',"content_index":0,"logprobs":[],"text":' + _encode(text)
        self._write_open_item("response.output_text.done", fields)
        fields = b',"content_index":0,"part":' + _encode(part)
        self._write_open_item("response.content_part.done", fields)

    def _finish_reasoning(self, item: ReasoningItem, text: str) -> None:
        summary = SummaryText(text)
        item.summary.append(summary)
        fields = b',"summary_index":0,"text":' + _encode(text)
        self._write_open_item("response.reasoning_summary_text.done", fields)
        fields = b',"summary_index":0,"part":' + _encode(summary)
        self._write_open_item("response.reasoning_summary_part.done", fields)

    def _write_custom_input(self, text: str) -> None:
        if text:
            self._write_open_item(
                "response.custom_tool_call_input.delta", b',"delta":' + _encode(text)
            )
        self._write_open_item("response.custom_tool_call_input.done", b',"input":' + _encode(text))

    def _id_suffix(self) -> str:
        position = len(self.response.output) + (self._open_item is not None)
        return f"{self.response.item_prefix}_{position}"

    def _write_delta(self, name: str, fields: bytes, text: str) -> None:
        self._texts.append(text)
        self._write_open_item(name, fields + b',"delta":' + _encode(text))

    def _write_open_item(self, name: str, fields: bytes) -> None:
        """Write an event about the open item. Formatted by hand, because deltas are most of the stream."""
        assert self._open_item is not None
        self._write_event(
            name,
            b',"item_id":%b,"output_index":%d%b}'
            % (_encode(self._open_item.id), len(self.response.output), fields),
        )

    def _write_item(self, name: str, item: Struct) -> None:
        index = len(self.response.output)
        self._write_event(name, b',"output_index":%d,"item":%b}' % (index, _encode(item)))

    def _write_response(self, name: str) -> None:
        self._write_event(name, b',"response":%b}' % _encode(self.response))

    def _write_event(self, name: str, rest: bytes) -> None:
        head = b'{"type":"%b","sequence_number":%d' % (name.encode(), self._sequence_number)
        self._sequence_number += 1
        self._out += write_event(name, head + rest)
