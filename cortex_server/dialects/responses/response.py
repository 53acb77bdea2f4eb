"""Translation of an unstreamed chat completion to a response of the Responses API, and of errors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import msgspec
from msgspec import UNSET, Struct

from cortex_common.errors import Busy, CortexError, PromptTooLong, Unavailable, UpstreamFailed
from cortex_server.dialects import finish_reasons
from cortex_server.dialects.chat import AssistantMessage, ToolCallDelta, ToolName, arguments_text
from cortex_server.dialects.engine_errors import first_choice
from cortex_server.dialects.finish_reasons import FinishKind
from cortex_server.dialects.responses.resource import (
    CustomToolCallItem,
    FunctionCallItem,
    IncompleteDetails,
    Item,
    ItemStatus,
    MessageItem,
    OutputText,
    ReasoningItem,
    Response,
    ResponseError,
    SummaryText,
    to_usage,
)
from cortex_server.dialects.tool_calls import ToolCallIds


class _CustomArguments(Struct):
    input: str


_custom_arguments = msgspec.json.Decoder(_CustomArguments)


def to_response(
    body: bytes,
    response: Response,
    *,
    call_ids: Collection[str] = (),
    only_first_call: bool = False,
    tool_names: Mapping[str, ToolName] | None = None,
    now: Callable[[], float],
    prompt_tokens: int = 0,
) -> Response:
    """Complete a response with an unstreamed chat completion.

    Args:
        body: the engine's JSON.
        response: as `new_response` returns it.
        call_ids: see `TranslatedRequest`.
        only_first_call: see `TranslatedRequest`.
        tool_names: see `TranslatedRequest`.
        now: returns Unix seconds.
        prompt_tokens: an estimate, for engines that report no usage.

    Raises:
        CortexError: the body is an error of the engine, or not a chat completion.
    """
    choice, usage = first_choice(body)
    message = choice.message or AssistantMessage()
    ids = ToolCallIds(call_ids, response.id, "call")
    calls = (message.tool_calls or [])[: 1 if only_first_call else None]
    output: list[Item] = list(_text_items(message, response.item_prefix))
    for call in calls:
        suffix = f"{response.item_prefix}_{len(output)}"
        output.append(_tool_call(call, suffix, ids, tool_names or {}))
    response.output = output
    response.usage = to_usage(usage, prompt_tokens)
    finish(response, choice.finish_reason, now())
    if response.status == "incomplete" and output:
        output[-1].status = "incomplete"
    return response


def finish(response: Response, finish_reason: str | None, now: float) -> None:
    """Set the status of a response whose output is complete, given the time in Unix seconds."""
    response.incomplete_details = _incomplete_details(finish_reason)
    if response.incomplete_details is not None:
        response.status = "incomplete"
    else:
        response.status = "completed"
        response.completed_at = max(int(now), response.created_at)


def start_tool_call(
    flat_name: str, suffix: str, call_id: str, names: Mapping[str, ToolName]
) -> Item:
    """Return a tool call without its arguments, under the name that the client declared.

    Args:
        flat_name: the name that the engine knows.
        suffix: what follows the type in the id of the item.
        call_id: the id of the call.
        names: see `TranslatedRequest`.
    """
    tool = names.get(flat_name) or ToolName(flat_name)
    namespace = tool.namespace or UNSET
    if tool.custom:
        return CustomToolCallItem(f"ctc_{suffix}", call_id, tool.name, "", "in_progress", namespace)
    return FunctionCallItem(f"fc_{suffix}", call_id, tool.name, "", "in_progress", namespace)


def finish_tool_call(
    item: FunctionCallItem | CustomToolCallItem, arguments: str, status: ItemStatus
) -> None:
    """Set the arguments of a tool call; those of a custom tool are the text in their field `input`."""
    item.status = status
    if isinstance(item, FunctionCallItem):
        item.arguments = arguments if arguments.strip() else "{}"
        return
    try:
        item.input = _custom_arguments.decode(arguments).input
    except (ValueError, RecursionError):
        item.input = arguments  # cut off, or the model wrote the input itself


def to_error(error: CortexError) -> ResponseError:
    """Translate an error to the codes that clients of the Responses API know (captured from Codex)."""
    if isinstance(error, PromptTooLong):
        code = "context_length_exceeded"
    elif isinstance(error, Busy):
        code = "rate_limit_exceeded"
    elif isinstance(error, Unavailable):
        code = "server_is_overloaded"
    else:
        code = "invalid_prompt" if error.status == 400 else "server_error"
    return ResponseError(code, ". ".join(p.rstrip(".") for p in (error.message, *error.hints)))


def _incomplete_details(finish_reason: str | None) -> IncompleteDetails | None:
    """Return why a response with this finish reason is incomplete; a reason that is not known is passed on."""
    match finish_reasons.classify(finish_reason or "stop"):
        case FinishKind.CUT:
            return IncompleteDetails("max_output_tokens")
        case FinishKind.REFUSED:
            return IncompleteDetails("content_filter")
        case FinishKind.UNKNOWN:
            return IncompleteDetails(str(finish_reason))
        case _:
            return None


def _text_items(message: AssistantMessage, prefix: str) -> Iterator[Item]:
    if message.reasoning_text:
        summary = [SummaryText(message.reasoning_text)]
        yield ReasoningItem(f"rs_{prefix}_0", summary, "completed")
    text = (message.text or "") + (message.refusal or "")
    if text:
        yield MessageItem(f"msg_{prefix}_1", "completed", [OutputText(text)])


def _tool_call(
    call: ToolCallDelta, suffix: str, ids: ToolCallIds, names: Mapping[str, ToolName]
) -> Item:
    function = call.function
    flat_name = (function and function.name) or ""
    try:
        arguments = arguments_text(function.arguments) if function else ""
    except ValueError:
        raise UpstreamFailed(f"The arguments of the call of {flat_name!r} are not text") from None
    item = start_tool_call(flat_name, suffix, ids.assign(call.id or ""), names)
    assert isinstance(item, FunctionCallItem | CustomToolCallItem)
    finish_tool_call(item, arguments, "completed")
    return item
