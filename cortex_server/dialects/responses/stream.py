"""Writes an engine's chat stream as a stream of the Responses API.

The grammar: `response.created`, `response.in_progress`, then each item in one piece (added, its parts and deltas,
done), then exactly one of `response.completed`, `response.incomplete`, `response.failed`. Every event carries
a growing `sequence_number`. Captured: Codex shows an item when it is done, and repeats the whole request when the
last event is missing or a failure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec
from msgspec import UNSET, Struct

from cortex_common.errors import CortexError
from cortex_http.sse import COMMENT, write_event
from cortex_server.dialects.responses.response import (
    FunctionCallItem,
    Item,
    ItemStatus,
    MessageItem,
    OutputText,
    ReasoningItem,
    Response,
    SummaryText,
    error_of,
    incomplete_of,
    usage_of,
)
from cortex_server.dialects.stream.writer import ClientStream
from cortex_server.dialects.tool_calls import CallIds

_encode = msgspec.json.encode


class ResponsesStream(ClientStream):
    """POST /v1/responses, streamed."""

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
            response_id: unique among answers, such as "resp_" and the request's id.
            model: the name that the client sent.
            created: Unix seconds.
            call_ids: from `Translated`.
            only_first_call: from `Translated`.
            function_names: from `Translated`.
        """
        super().__init__(only_first_call=only_first_call)
        self._response = Response(response_id, int(created), model, "in_progress", [])
        self._names = function_names or {}
        self._ids = CallIds(call_ids, response_id, "call")
        self._item: Item | None = None
        self._said: list[str] = []
        self._sequence = 0

    def reasoning(self, text: str) -> None:
        """See ChatSink."""
        if not isinstance(self._item, ReasoningItem):
            self._begin(ReasoningItem(self._item_id("rs"), [], "in_progress"))
            part = b',"summary_index":0,"part":{"type":"summary_text","text":""}'
            self._event("response.reasoning_summary_part.added", part)
        self._delta("response.reasoning_summary_text.delta", b',"summary_index":0', text)

    def text(self, text: str) -> None:
        """See ChatSink."""
        if not isinstance(self._item, MessageItem):
            self._begin(MessageItem(self._item_id("msg"), "in_progress", []))
            part = b',"content_index":0,"part":' + _encode(OutputText(""))
            self._event("response.content_part.added", part)
        self._delta("response.output_text.delta", b',"content_index":0,"logprobs":[]', text)

    def call_started(self, number: int, engine_id: str, name: str) -> None:  # noqa: ARG002 - the sink's signature
        """See CallSink."""
        namespace, short = self._names.get(name, (UNSET, name))
        call_id = self._ids.take(engine_id)
        item = FunctionCallItem(self._item_id("fc"), call_id, short, "", "in_progress", namespace)
        self._begin(item)

    def call_arguments(self, text: str) -> None:
        """See CallSink."""
        self._delta("response.function_call_arguments.delta", b"", text)

    def _write_start(self) -> None:
        self._response_event("response.created")
        self._response_event("response.in_progress")

    def _write_ping(self) -> None:
        self._out += COMMENT

    def _write_end(self) -> None:
        reader, response = self._reader, self._response
        response.incomplete_details = incomplete_of(reader.finish_reason)
        response.status = "completed" if response.incomplete_details is None else "incomplete"
        self._close(response.status)
        response.usage = usage_of(reader.usage)
        self._response_event(f"response.{response.status}")

    def _write_error(self, error: CortexError) -> None:
        if not self.started:
            self._write_start()
        # The open item is not closed: Codex would keep the half of it in its history, and repeat.
        self._response.status = "failed"
        self._response.error = error_of(error)
        self._response_event("response.failed")

    def _begin(self, item: Item) -> None:
        self._start()
        self._close("completed")
        self._item = item
        self._item_event("response.output_item.added", item)

    def _close(self, status: ItemStatus) -> None:
        """End the open item, with the events that tell its whole content once more."""
        item = self._item
        if item is None:
            return
        text = "".join(self._said)
        whole = _encode(text)
        match item:
            case MessageItem():
                part = OutputText(text)
                item.content.append(part)
                self._event(
                    "response.output_text.done", b',"content_index":0,"logprobs":[],"text":' + whole
                )
                self._event(
                    "response.content_part.done", b',"content_index":0,"part":' + _encode(part)
                )
            case ReasoningItem():
                summary = SummaryText(text)
                item.summary.append(summary)
                self._event(
                    "response.reasoning_summary_text.done", b',"summary_index":0,"text":' + whole
                )
                self._event(
                    "response.reasoning_summary_part.done",
                    b',"summary_index":0,"part":' + _encode(summary),
                )
            case FunctionCallItem():
                item.arguments = text or "{}"
                done = b',"name":' + _encode(item.name) + b',"arguments":' + _encode(item.arguments)
                self._event("response.function_call_arguments.done", done)
        item.status = status
        self._item_event("response.output_item.done", item)
        self._response.output.append(item)
        self._item = None
        self._said.clear()

    def _item_id(self, prefix: str) -> str:
        position = len(self._response.output) + (self._item is not None)
        return f"{prefix}_{self._response.id}_{position}"

    def _delta(self, name: str, fields: bytes, text: str) -> None:
        self._said.append(text)
        self._event(name, fields + b',"delta":' + _encode(text))

    def _event(self, name: str, fields: bytes) -> None:
        """An event about the open item. Written by hand: deltas are most of the stream."""
        assert self._item is not None
        self._numbered(
            name,
            b',"item_id":%b,"output_index":%d%b}'
            % (_encode(self._item.id), len(self._response.output), fields),
        )

    def _item_event(self, name: str, item: Struct) -> None:
        index = len(self._response.output)
        self._numbered(name, b',"output_index":%d,"item":%b}' % (index, _encode(item)))

    def _response_event(self, name: str) -> None:
        self._numbered(name, b',"response":%b}' % _encode(self._response))

    def _numbered(self, name: str, rest: bytes) -> None:
        head = b'{"type":"%b","sequence_number":%d' % (name.encode(), self._sequence)
        self._sequence += 1
        self._out += write_event(name, head + rest)
