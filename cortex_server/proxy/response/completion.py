"""What a whole completion says about itself: whether it is one, its usage, and its size."""

from __future__ import annotations

from cortex_common.errors import UpstreamFailed
from cortex_server.dialects.chat import ChatCompletion, parse_completion
from cortex_server.dialects.engine_errors import error_from_event
from cortex_server.dialects.lenient import UnreadableContent
from cortex_server.dialects.usage import Usage
from cortex_server.proxy.response.first_bytes import is_error


def check_completion(body: bytes) -> ChatCompletion:
    """Return a whole response, chat or text.

    Raises:
        CortexError: It is an error sent with status 200, is not JSON or cut off, or has no choices.
    """
    try:
        completion = parse_completion(body)
    except UnreadableContent as failed:
        if is_error(body):
            raise error_from_event(body) from None
        raise UpstreamFailed(
            f"the engine's response is not a completion in JSON, or is cut off: {failed}"
        ) from None
    if completion.is_error:
        raise error_from_event(body)
    if completion.choices:
        return completion
    described = error_from_event(body)
    if described.message.startswith("The engine answered"):
        raise UpstreamFailed("the engine's response has no choices")
    raise described


def usage_of(completion: ChatCompletion) -> Usage | None:
    """Return the usage that a whole response reports, if any."""
    usage = completion.usage
    for choice in completion.choices or ():
        usage = usage or choice.usage
    return usage if usage is not None and usage.is_reported else None


def output_size(completion: ChatCompletion) -> int:
    """Return the bytes of what the model wrote in a whole response, for those without usage."""
    size = 0
    for choice in completion.choices or ():
        message = choice.message or choice.delta
        size += len((choice.text or "").encode())
        if message is not None:
            size += sum(
                len((text or "").encode())
                for text in (message.text, message.reasoning_text, message.refusal)
            )
            size += sum(
                len(bytes(call.function.arguments))
                for call in message.calls
                if call.function is not None
            )
    return size
