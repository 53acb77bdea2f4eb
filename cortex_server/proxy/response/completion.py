"""What a whole completion says about itself: whether it is one, its usage, and its size."""

from __future__ import annotations

import msgspec

from cortex_common.errors import UpstreamFailed
from cortex_server.dialects.chat import Usage, parse_completion
from cortex_server.dialects.engine_errors import error_from_event
from cortex_server.proxy.response.first_bytes import is_error


class _Counted(msgspec.Struct):
    usage: Usage | None = None


class _Completion(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None


_decode_counted = msgspec.json.Decoder(_Counted).decode
_decode_completion = msgspec.json.Decoder(_Completion).decode


def check_completion(body: bytes) -> None:
    """Check that a whole response is a completion, chat or text.

    Raises:
        CortexError: It is an error sent with status 200, is not JSON or cut off, or has no choices.
    """
    if is_error(body):
        raise error_from_event(body)
    try:
        choices = _decode_completion(body).choices
    except (ValueError, RecursionError):
        raise UpstreamFailed(
            "the engine's response is not a completion in JSON, or is cut off"
        ) from None
    if choices:
        return
    described = error_from_event(body)
    if described.message.startswith("The engine answered"):
        raise UpstreamFailed("the engine's response has no choices")
    raise described


def read_usage(body: bytes) -> Usage | None:
    """Return the usage of a whole response; None when it has none, or the body is not JSON."""
    try:
        return _decode_counted(body).usage
    except (ValueError, RecursionError):
        return None


def output_size(body: bytes) -> int:
    """Return the bytes of what the model wrote in a whole response, for those without usage; 0 if it has none."""
    completion = parse_completion(body)
    if completion is None:
        return 0
    size = 0
    for choice in completion.choices or ():
        message = choice.message or choice.delta
        if message is not None:
            size += sum(
                len((text or "").encode())
                for text in (message.text, message.reasoning_text, message.refusal)
            )
            size += sum(
                len(bytes(call.function.arguments))
                for call in message.tool_calls or ()
                if call.function is not None
            )
    return size
