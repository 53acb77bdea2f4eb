"""An engine's whole answer as a response of the Responses API."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import msgspec
from msgspec import UNSET

from cortex_server.dialects.chat import CallPiece, Said, arguments_text
from cortex_server.dialects.engine_errors import read_whole
from cortex_server.dialects.responses_wire import (
    FunctionCallItem,
    Item,
    MessageItem,
    OutputText,
    ReasoningItem,
    Response,
    SummaryText,
    incomplete_of,
    usage_of,
)
from cortex_server.dialects.tool_calls import CallIds


def to_response(
    body: bytes,
    *,
    response_id: str,
    model: str,
    created: float,
    call_ids: Collection[str] = (),
    only_first_call: bool = False,
    function_names: Mapping[str, tuple[str, str]] | None = None,
) -> bytes:
    """Say a chat completion as a response.

    Args:
        body: the engine's JSON.
        response_id: unique among answers.
        model: the name that the client sent.
        created: Unix seconds.
        call_ids: from `Translated`.
        only_first_call: from `Translated`.
        function_names: from `Translated`.

    Raises:
        CortexError: the body is an error of the engine, or no answer at all.
    """
    choice, usage = read_whole(body)
    said = choice.message or Said()
    ids = CallIds(call_ids, response_id, "call")
    pieces = (said.tool_calls or [])[: 1 if only_first_call else None]
    output: list[Item] = list(_prose(said, response_id))
    for piece in pieces:
        output.append(_call(piece, f"fc_{response_id}_{len(output)}", ids, function_names or {}))
    incomplete = incomplete_of(choice.finish_reason)
    if incomplete is not None and output:
        output[-1].status = "incomplete"
    response = Response(
        id=response_id,
        created_at=int(created),
        model=model,
        status="completed" if incomplete is None else "incomplete",
        output=output,
        usage=usage_of(usage),
        incomplete_details=incomplete,
    )
    return msgspec.json.encode(response)


def _prose(said: Said, response_id: str) -> Iterator[Item]:
    if said.thought:
        summary = [SummaryText(said.thought)]
        yield ReasoningItem(f"rs_{response_id}_0", summary, "completed")
    text = (said.text or "") + (said.refusal or "")
    if text:
        yield MessageItem(f"msg_{response_id}_1", "completed", [OutputText(text)])


def _call(
    piece: CallPiece, item_id: str, ids: CallIds, names: Mapping[str, tuple[str, str]]
) -> Item:
    function = piece.function
    flat = (function and function.name) or ""
    namespace, name = names.get(flat, (UNSET, flat))
    try:
        arguments = arguments_text(function.arguments) if function else ""
    except ValueError:
        arguments = ""
    call_id = ids.take(piece.id or "")
    return FunctionCallItem(item_id, call_id, name, arguments or "{}", "completed", namespace)
