"""Writer of Responses API streams.

The grammar: `response.created`, `response.in_progress`, then each item without interruption (added, its parts and
deltas, done), then exactly one of `response.completed`, `response.incomplete`, `response.failed`. Each event has an
increasing `sequence_number`. Observed: Codex displays an item when it is done, and repeats the whole request if the
last event is missing or a failure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec
from msgspec import UNSET, Struct
from typing_extensions import override

from cortex_common.errors import CortexError
from cortex_common.sse import COMMENT, write_event
from cortex_server.dialects.responses.response import (
    FunctionCallItem,
    Item,
    ItemStatus,
    MessageItem,
    OutputText,
    ReasoningItem,
    Response,
    SummaryText,
    to_error,
    to_incomplete_details,
    to_usage,
)
from cortex_server.dialects.stream.writer import StreamWriter
from cortex_server.dialects.tool_calls import ToolCallIds

_encode = msgspec.json.encode


class ResponsesStreamWriter(StreamWriter):
    """Writes the stream of POST /v1/responses."""

    def __init__(
        self,
        *,
        response_id: str,
        model: str,
        created: float,
        call_ids: Collection[str] = (),
        only_first_call: bool = False,
        function_names: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        """Start a stream.

        Args:
            response_id: unique among responses, such as "resp_" and the request id.
            model: the name that the client sent.
            created: Unix seconds.
            call_ids: see `TranslatedRequest`.
            only_first_call: see `TranslatedRequest`.
            function_names: see `TranslatedRequest`.
        """
        super().__init__(only_first_call=only_first_call)
        self._response = Response(response_id, int(created), model, "in_progress", [])
        self._function_names = function_names or {}
        self._ids = ToolCallIds(call_ids, response_id, "call")
        self._open_item: Item | None = None
        self._texts: list[str] = []
        self._sequence_number = 0

    @override
    def on_reasoning(self, text: str) -> None:
        if not isinstance(self._open_item, ReasoningItem):
            self._start_item(ReasoningItem(self._item_id("rs"), [], "in_progress"))
            part = b',"summary_index":0,"part":{"type":"summary_text","text":""}'
            self._write_open_item("response.reasoning_summary_part.added", part)
        self._write_delta("response.reasoning_summary_text.delta", b',"summary_index":0', text)

    @override
    def on_text(self, text: str) -> None:
        if not isinstance(self._open_item, MessageItem):
            self._start_item(MessageItem(self._item_id("msg"), "in_progress", []))
            part = b',"content_index":0,"part":' + _encode(OutputText(""))
            self._write_open_item("response.content_part.added", part)
        self._write_delta("response.output_text.delta", b',"content_index":0,"logprobs":[]', text)

    @override
    def on_tool_call(self, position: int, engine_id: str, name: str) -> None:
        namespace, short_name = self._function_names.get(name, (UNSET, name))
        call_id, item_id = self._ids.assign(engine_id), self._item_id("fc")
        self._start_item(
            FunctionCallItem(item_id, call_id, short_name, "", "in_progress", namespace)
        )

    @override
    def on_arguments(self, text: str) -> None:
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
        reader, response = self._reader, self._response
        response.incomplete_details = to_incomplete_details(reader.finish_reason)
        response.status = "completed" if response.incomplete_details is None else "incomplete"
        self._finish_item(response.status)
        response.usage = to_usage(reader.usage)
        self._write_response(f"response.{response.status}")

    @override
    def _write_error(self, error: CortexError) -> None:
        if not self.started:
            self._write_start()
        # The open item is not finished: Codex would keep the partial item in its history, and retry.
        self._response.status = "failed"
        self._response.error = to_error(error)
        self._write_response("response.failed")

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
                item.arguments = text or "{}"
                fields = (
                    b',"name":' + _encode(item.name) + b',"arguments":' + _encode(item.arguments)
                )
                self._write_open_item("response.function_call_arguments.done", fields)
        item.status = status
        self._write_item("response.output_item.done", item)
        self._response.output.append(item)
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

    def _item_id(self, prefix: str) -> str:
        position = len(self._response.output) + (self._open_item is not None)
        return f"{prefix}_{self._response.id}_{position}"

    def _write_delta(self, name: str, fields: bytes, text: str) -> None:
        self._texts.append(text)
        self._write_open_item(name, fields + b',"delta":' + _encode(text))

    def _write_open_item(self, name: str, fields: bytes) -> None:
        """Write an event about the open item. Formatted by hand, because deltas are most of the stream."""
        assert self._open_item is not None
        self._write_event(
            name,
            b',"item_id":%b,"output_index":%d%b}'
            % (_encode(self._open_item.id), len(self._response.output), fields),
        )

    def _write_item(self, name: str, item: Struct) -> None:
        index = len(self._response.output)
        self._write_event(name, b',"output_index":%d,"item":%b}' % (index, _encode(item)))

    def _write_response(self, name: str) -> None:
        self._write_event(name, b',"response":%b}' % _encode(self._response))

    def _write_event(self, name: str, rest: bytes) -> None:
        head = b'{"type":"%b","sequence_number":%d' % (name.encode(), self._sequence_number)
        self._sequence_number += 1
        self._out += write_event(name, head + rest)
