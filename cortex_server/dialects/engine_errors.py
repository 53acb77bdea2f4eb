"""Reads what engines say when they fail, in whatever shape, into the error tree.

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
from cortex_server.dialects.chat import Choice, Usage, read_answer

_OVERFLOW_WORDS = re.compile(
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
_ASKED_WORDS = re.compile(
    r"""(image|audio|video)\ input\ is\ not\ supported
      | failed\ to\ parse\ (messages|tools)
      | vector::_M_range_check
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""What llama.cpp says with 500 of requests that no repeat would mend; the last of a token that it does not have."""
_NUMBER = re.compile(r"\d{2,}")
_KEY_REFUSED = 401
_STATUS_OF_TYPE = {
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
_CLASSES: dict[int, type[CortexError]] = {
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
_OVERFLOW_CODES = {"exceed_context_size_error", "context_length_exceeded"}


class _Body(Struct):
    """The fields in which engines tell what went wrong, at whichever depth."""

    error: Raw = Raw()
    message: Raw = Raw()
    detail: Raw = Raw()
    type: str | int | None = None
    code: str | int | None = None
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


_bodies = msgspec.json.Decoder(_Body)


def from_answer(status: int, body: bytes, retry_after: float | None = None) -> CortexError:
    """The error in an engine's HTTP answer.

    An engine's 401 or 403 is our misconfiguration, not the client's key: it becomes UpstreamFailed.

    Args:
        status: the HTTP status of the answer, 400 or more.
        body: whatever the engine sent.
        retry_after: seconds, from the answer's header.
    """
    error = _error(status, _read(body), body)
    error.retry_after = retry_after
    return error


def from_stream(data: bytes) -> CortexError:
    """The error in an event of a stream, whose HTTP status was 200 long ago.

    Args:
        data: the event's data: a wrapped or bare error object, or text.
    """
    said = _read(data)
    status = 500
    if said is not None:
        if isinstance(said.code, int) and 400 <= said.code < 600:
            status = said.code
        else:
            status = _STATUS_OF_TYPE.get(str(said.type), 500)
    return _error(status, said, data)


def read_whole(body: bytes) -> tuple[Choice, Usage | None]:
    """The first choice and the usage of an answer that was not streamed.

    Raises:
        CortexError: it is an error with status 200, or no answer at all.
    """
    answer = read_answer(body)
    if answer is None:
        raise UpstreamFailed("The engine's answer is not the JSON of a chat completion")
    if (error := bytes(answer.error)) and error != b"null":
        raise from_stream(body)
    if not answer.choices:
        raise UpstreamFailed("The engine's answer has no choices")
    return answer.choices[0], answer.usage


def _read(body: bytes) -> _Body | None:
    try:
        outer = _bodies.decode(body)
        inner = bytes(outer.error)
        if inner.startswith(b"{"):
            return _bodies.decode(inner)
    except (ValueError, RecursionError):
        return None
    if inner.startswith(b'"'):
        outer.message = outer.error
    elif not bytes(outer.message):
        outer.message = outer.detail
    return outer


def _error(status: int, said: _Body | None, body: bytes) -> CortexError:
    if status == _KEY_REFUSED:  # in words that may show the key
        return UpstreamFailed(
            "the server behind this model refuses the key of the gateway",
            hints=(
                "`key` of the upstream, or `token` of the node, in cortex.toml",
                "an engine that a neuron starts must ask for no key",
            ),
        )
    message = _message(said, body) or f"The engine answered {status} without a reason"
    details = {"upstream_status": status}
    if _is_overflow(status, said, message):
        return PromptTooLong(message, details=details | _sizes(said, message))
    asked_wrong = 400 <= status < 500 or (status == 500 and _ASKED_WORDS.search(message))
    fallback = BadRequest if asked_wrong else UpstreamFailed
    return _CLASSES.get(status, fallback)(message, details=details)


def _message(said: _Body | None, body: bytes) -> str:
    if said is None:
        text = body.decode("utf-8", "replace").strip()
        return "" if text.startswith("<") else text[:500]
    raw = bytes(said.message)
    if raw.startswith(b'"'):
        return str(msgspec.json.decode(raw))
    return raw.decode("utf-8", "replace") if raw and raw != b"null" else ""


def _is_overflow(status: int, said: _Body | None, message: str) -> bool:
    if said is not None and {str(said.type), str(said.code)} & _OVERFLOW_CODES:
        return True
    return status in {400, 413, 422, 500} and _OVERFLOW_WORDS.search(message) is not None


def _sizes(said: _Body | None, message: str) -> dict[str, int]:
    """Tokens of the prompt and of the context, from the fields or else from the words."""
    if said is not None and said.n_prompt_tokens and said.n_ctx:
        return {"n_prompt_tokens": said.n_prompt_tokens, "n_ctx": said.n_ctx}
    numbers = sorted({int(n) for n in _NUMBER.findall(message)})
    if not numbers:
        return {}
    # The sentences name the limit, and most of them what was asked for, which is the larger.
    limit = {"n_ctx": numbers[0]}
    return limit | ({"n_prompt_tokens": numbers[-1]} if len(numbers) > 1 else {})
