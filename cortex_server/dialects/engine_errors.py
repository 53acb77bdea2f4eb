"""Parsing of engine errors, in whatever shape, into the error tree.

Shapes seen: `{"error": {"message", "type", "code"}}` (OpenAI, llama.cpp, vLLM), the same in a list (Gemini) or with the
error of another server in `metadata.raw` (OpenRouter), `{"error": "text"}` (Ollama, TGI, xAI), `{"message": "text"}`
(mistral.rs, Cerebras, Bedrock), `{"object": "error", "message"}` (older vLLM), `{"detail": ...}` (FastAPI),
`{"base_resp": {"status_code", "status_msg"}}` (MiniMax), plain text and HTML.
"""

from __future__ import annotations

import re

import msgspec
from msgspec import Raw, Struct

from cortex_common.errors import (
    BadRequest,
    BodyTooLarge,
    Busy,
    CortexError,
    NotFound,
    NotSupported,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
)
from cortex_server.dialects import finish_reasons
from cortex_server.dialects.chat import Choice, parse_completion
from cortex_server.dialects.length_errors import LengthError, find_length_error
from cortex_server.dialects.lenient import UnreadableContent, lenient_string, token_count
from cortex_server.dialects.usage import Usage

_CLIENT_MISTAKE = re.compile(
    r"""(image|audio|video)\ input\ is\ not\ supported
      | failed\ to\ parse\ (messages|tools)
      | vector::_M_range_check
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""Messages that llama.cpp sends with 500 although retrying can't help; the last is about an unknown token id."""
_UNAUTHORIZED = 401
_STATUS_BY_WORD = {
    word: status
    for status, words in {
        400: """
            invalid_request_error invalid_request invalid_parameter_error invalid_argument bad_request badrequesterror
            validation exceed_context_size_error context_length_exceeded too_many_prompt_tokens
            """,
        401: "authentication_error unauthenticated invalid_api_key authenticationerror",
        402: "insufficient_balance billing_error payment_required",
        403: "permission_error permission_denied permissiondeniederror",
        404: "not_found_error not_found model_not_found notfounderror",
        413: "request_too_large",
        429: "rate_limit_error rate_limit_exceeded resource_exhausted insufficient_quota ratelimiterror",
        501: "not_supported_error not_implemented notimplementederror",
        503: "unavailable_error overloaded_error overloaded unavailable service_unavailable serviceunavailableerror",
        504: "timeout_error deadline_exceeded gateway_timeout",
    }.items()
    for word in words.split()
}
_CLASS_BY_STATUS: dict[int, type[CortexError]] = {
    402: UpstreamFailed,
    403: UpstreamFailed,
    404: NotFound,
    408: UpstreamTimeout,
    413: BodyTooLarge,
    429: Busy,
    501: NotSupported,
    503: Unavailable,
    504: UpstreamTimeout,
    529: Unavailable,
}


class _Metadata(Struct):
    raw: Raw = Raw()


class _ErrorFields(Struct):
    """The fields that engines use to describe an error, at any depth."""

    error: Raw = Raw()
    message: Raw = Raw()
    detail: Raw = Raw()
    status_msg: Raw = Raw()
    base_resp: Raw = Raw()
    metadata: Raw = Raw()
    type: Raw = Raw()
    error_type: Raw = Raw()
    status: Raw = Raw()
    code: Raw = Raw()
    status_code: Raw = Raw()
    n_prompt_tokens: int | float | str | None = None
    n_ctx: int | float | str | None = None

    @property
    def words(self) -> set[str]:
        """Its code, type and status, in lower case."""
        named = (self.type, self.error_type, self.status, self.code, self.status_code)
        return {bytes(raw).decode("utf-8", "replace").strip('"').lower() for raw in named}


_error_fields = msgspec.json.Decoder(_ErrorFields)
_lists = msgspec.json.Decoder(list[Raw])
_metadata = msgspec.json.Decoder(_Metadata)
_strings = msgspec.json.Decoder(str)


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
    return _to_error(_status(fields) if fields is not None else 500, fields, data)


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


def _status(fields: _ErrorFields) -> int:
    """Return the HTTP status that the fields of an error stand for."""
    for word in fields.words:
        if len(word) == 3 and word.isdigit() and 400 <= int(word) < 600:
            return int(word)
    return next((_STATUS_BY_WORD[word] for word in fields.words if word in _STATUS_BY_WORD), 500)


def _parse(body: bytes) -> _ErrorFields | None:
    try:
        if body.lstrip().startswith(b"["):
            body = bytes(_lists.decode(body)[0])
        outer = _error_fields.decode(body)
        for inner in (outer.error, outer.base_resp):
            if bytes(inner).startswith(b"{"):
                return _error_fields.decode(inner)
    except (ValueError, RecursionError, IndexError):
        return None
    if bytes(outer.error).startswith(b'"'):
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
    length_error = _length_error(status, fields, message)
    if length_error is not None:
        return length_error.to_error(message, details)
    is_client_mistake = 400 <= status < 500 or (status == 500 and _CLIENT_MISTAKE.search(message))
    fallback = BadRequest if is_client_mistake else UpstreamFailed
    return _CLASS_BY_STATUS.get(status, fallback)(message, details=details)


def _message(fields: _ErrorFields | None, body: bytes) -> str:
    if fields is None:
        text = body.decode("utf-8", "replace").strip()
        return "" if text.startswith("<") else text[:500]
    message = _text(fields.message) or _text(fields.status_msg)
    inner = _inner_message(fields.metadata)
    return f"{message}: {inner}" if inner and inner not in message else message


def _inner_message(metadata: Raw) -> str:
    """Return the message of the server behind a router, which is JSON as text or plain text."""
    try:
        raw = _metadata.decode(metadata).raw
    except (ValueError, RecursionError):
        return ""
    text = _text(raw)
    if not text:
        return ""
    data = text.encode("utf-8", "replace")
    fields = _parse(data)
    return (_text(fields.message) if fields is not None else "") or text[:500]


def _text(raw: Raw) -> str:
    data = bytes(raw)
    if data.startswith(b'"'):
        try:
            return _strings.decode(data)
        except ValueError:
            return lenient_string(data)
    return data.decode("utf-8", "replace") if data and data != b"null" else ""


def _length_error(status: int, fields: _ErrorFields | None, message: str) -> LengthError | None:
    if status not in {400, 413, 422, 500}:
        return None
    found = find_length_error(message, fields.words if fields is not None else None)
    if found is None or fields is None or found.is_about_completion:
        return found
    prompt, limit = token_count(fields.n_prompt_tokens), token_count(fields.n_ctx)
    return found._replace(prompt=prompt, limit=limit) if prompt and limit else found
