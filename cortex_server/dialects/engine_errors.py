"""Parsing of engine errors, in whatever shape, into the error tree.

Shapes seen: `{"error": {"message", "type", "code"}}` (OpenAI, llama.cpp, vLLM), `{"error": "text"}` (Ollama),
`{"message": "text"}` (mistral.rs), `{"object": "error", "message"}` (older vLLM), `{"detail": ...}` (FastAPI),
plain text and HTML.
"""

from __future__ import annotations

import re

import msgspec
from msgspec import Raw, Struct

from cortex_common.errors import (
    BadRequest,
    Busy,
    CortexError,
    NotFound,
    NotSupported,
    PromptTooLong,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
)
from cortex_server.dialects import finish_reasons
from cortex_server.dialects.chat import Choice, parse_completion
from cortex_server.dialects.lenient import UnreadableContent
from cortex_server.dialects.usage import Usage

_CONTEXT_OVERFLOW = re.compile(
    r"""maximum\ context\ length
      | context\ (length|size|window)\ exceeded
      | exceed_context_size
      | exceeds?\ the\ (available\ |model'?s?\ )?(maximum\ )?context
      | exceeds?\ the\ maximum\ (model\ )?(sequence\ )?length
      | longer\ than\ the\ (model'?s?\ )?(maximum\ )?context
      | prompt\ is\ too\ long
      | prompt\ length\ .*\ (exceeds|longer)
      | prompt\ sequence\ length\ is\ greater\ than
      | tokens\)\ is\ too\ large\ to\ process
    """,
    re.IGNORECASE | re.VERBOSE,
)
_CLIENT_MISTAKE = re.compile(
    r"""(image|audio|video)\ input\ is\ not\ supported
      | failed\ to\ parse\ (messages|tools)
      | vector::_M_range_check
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""Messages that llama.cpp sends with 500 although retrying can't help; the last is about an unknown token id."""
_NUMBER = re.compile(r"\d{2,}")
_UNAUTHORIZED = 401
_STATUS_BY_TYPE = {
    "invalid_request_error": 400,
    "exceed_context_size_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "not_supported_error": 501,
    "unavailable_error": 503,
    "overloaded_error": 503,
    "timeout_error": 504,
}
_CLASS_BY_STATUS: dict[int, type[CortexError]] = {
    402: UpstreamFailed,
    403: UpstreamFailed,
    404: NotFound,
    408: UpstreamTimeout,
    429: Busy,
    501: NotSupported,
    503: Unavailable,
    504: UpstreamTimeout,
    529: Unavailable,
}
_CONTEXT_OVERFLOW_CODES = {"exceed_context_size_error", "context_length_exceeded"}


class _ErrorFields(Struct):
    """The fields that engines use to describe an error, at any depth."""

    error: Raw = Raw()
    message: Raw = Raw()
    detail: Raw = Raw()
    type: str | int | None = None
    code: str | int | None = None
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


_error_fields = msgspec.json.Decoder(_ErrorFields)


def error_from_response(status: int, body: bytes, retry_after: float | None = None) -> CortexError:
    """Parse the error in an engine's HTTP response.

    An engine's 401 or 403 is a misconfiguration of the gateway, not of the client, and becomes `UpstreamFailed`.

    Args:
        status: the HTTP status, 400 or higher.
        body: the body, in any format.
        retry_after: seconds, from the response header.
    """
    error = _to_error(status, _parse(body), body)
    error.retry_after = retry_after
    return error


def error_from_event(data: bytes) -> CortexError:
    """Parse the error in an event of a stream whose HTTP status was 200.

    Args:
        data: the data of the event: a wrapped or bare error object, or text.
    """
    fields = _parse(data)
    status = 500
    if fields is not None:
        if isinstance(fields.code, int) and 400 <= fields.code < 600:
            status = fields.code
        else:
            status = _STATUS_BY_TYPE.get(str(fields.type), 500)
    return _to_error(status, fields, data)


def first_choice(body: bytes) -> tuple[Choice, Usage | None]:
    """Return the first choice and the usage of an unstreamed response.

    Raises:
        CortexError: the body is an error sent with status 200, or not a chat completion.
    """
    try:
        completion = parse_completion(body)
    except UnreadableContent as failed:
        raise UpstreamFailed(f"The engine's response can't be read: {failed}") from None
    if completion.is_error:
        raise error_from_event(body)
    if not completion.choices:
        raise UpstreamFailed("The engine's response has no choices")
    choice = completion.choices[0]
    failure = finish_reasons.failure(choice.finish_reason or "")
    if failure is not None:
        raise failure
    if choice.message is not None:
        choice.message.tool_calls = choice.message.calls
    return choice, completion.usage or choice.usage


def _parse(body: bytes) -> _ErrorFields | None:
    try:
        outer = _error_fields.decode(body)
        inner = bytes(outer.error)
        if inner.startswith(b"{"):
            return _error_fields.decode(inner)
    except (ValueError, RecursionError):
        return None
    if inner.startswith(b'"'):
        outer.message = outer.error
    elif not bytes(outer.message):
        outer.message = outer.detail
    return outer


def _to_error(status: int, fields: _ErrorFields | None, body: bytes) -> CortexError:
    if status == _UNAUTHORIZED:  # the engine's own message can contain the key
        return UpstreamFailed(
            "the server behind this model rejected the gateway's key",
            hints=(
                "check `key` of the upstream, or `token` of the node, in cortex.toml",
                "an engine started by a neuron must not require a key",
            ),
        )
    message = _message(fields, body) or f"The engine answered {status} without a reason"
    details = {"upstream_status": status}
    if _is_context_overflow(status, fields, message):
        return PromptTooLong(message, details=details | _token_limits(fields, message))
    is_client_mistake = 400 <= status < 500 or (status == 500 and _CLIENT_MISTAKE.search(message))
    fallback = BadRequest if is_client_mistake else UpstreamFailed
    return _CLASS_BY_STATUS.get(status, fallback)(message, details=details)


def _message(fields: _ErrorFields | None, body: bytes) -> str:
    if fields is None:
        text = body.decode("utf-8", "replace").strip()
        return "" if text.startswith("<") else text[:500]
    raw = bytes(fields.message)
    if raw.startswith(b'"'):
        return str(msgspec.json.decode(raw))
    return raw.decode("utf-8", "replace") if raw and raw != b"null" else ""


def _is_context_overflow(status: int, fields: _ErrorFields | None, message: str) -> bool:
    if fields is not None and {str(fields.type), str(fields.code)} & _CONTEXT_OVERFLOW_CODES:
        return True
    return status in {400, 413, 422, 500} and _CONTEXT_OVERFLOW.search(message) is not None


def _token_limits(fields: _ErrorFields | None, message: str) -> dict[str, int]:
    """Return the tokens of the prompt and of the context, from the fields or else from the message."""
    if fields is not None and fields.n_prompt_tokens and fields.n_ctx:
        return {"n_prompt_tokens": fields.n_prompt_tokens, "n_ctx": fields.n_ctx}
    numbers = sorted({int(n) for n in _NUMBER.findall(message)})
    if not numbers:
        return {}
    # Messages name the limit, and most of them also the prompt's size, which is larger.
    limit = {"n_ctx": numbers[0]}
    return limit | ({"n_prompt_tokens": numbers[-1]} if len(numbers) > 1 else {})
