"""Lenient decoding of chunks and responses that the strict decoders reject.

Engines send numbers as text, text as numbers or parts, NaN, single surrogates, one object in place of a list. Here each
field is converted to the type that OpenAI's API gives it, so that one odd field costs nothing else. Text or a tool call
that can't be read is an error, never a gap.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
from msgspec import Raw

Json = dict[str, Any]

_NOT_A_NUMBER = Raw(b"null")
"""Stands for NaN and the infinities; recognized by identity."""

_ESCAPE = re.compile(
    r"\\(?:(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
_REPLACEMENT = r"\ufffd"
_MAX_DIGITS = 18

_TEXT_PARTS = {"text", "output_text", "input_text", "markdown"}
_REASONING_PARTS = {"thinking", "reasoning", "reasoning_text", "reasoning_content", "summary_text"}
_COUNT_FIELDS = (
    "prompt_tokens",
    "completion_tokens",
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cached_tokens",
    "prompt_cache_hit_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "reasoning_tokens",
)
_COUNT_DETAILS = (
    "prompt_tokens_details",
    "completion_tokens_details",
    "input_tokens_details",
    "output_tokens_details",
)


class UnreadableContent(ValueError):
    """Text or a tool call can't be read; the message says what."""


def decode_leniently(data: bytes) -> Json:
    """Return a chunk or an unstreamed response with its fields converted to the types of the API.

    Raises:
        UnreadableContent: the data is not a JSON object, or it contains text or a tool call that can't be read.
    """
    try:
        value = _decoder.decode(_without_single_surrogates(data.decode("utf-8", "replace")))
        if isinstance(value, dict):
            _convert_response(value)
            return value
    except UnreadableContent:
        raise
    except (ValueError, RecursionError):
        raise UnreadableContent("it is not JSON, or nested too deep") from None
    raise UnreadableContent("it is not a JSON object")


def lenient_string(data: bytes) -> str:
    """Decode a JSON string that is not valid UTF-8 or has single surrogates, which become U+FFFD.

    Raises:
        ValueError: it is not a JSON string.
    """
    value = _decoder.decode(_without_single_surrogates(data.decode("utf-8", "replace")))
    if not isinstance(value, str):
        raise UnreadableContent("it is not text")
    return value


def _parse_number(token: str) -> int | Raw:
    """Keep a number as the engine wrote it; only integers of usual size are needed as numbers."""
    is_integer = token.lstrip("-").isdigit() and len(token) <= _MAX_DIGITS
    return int(token) if is_integer else Raw(token.encode())


_decoder = json.JSONDecoder(
    parse_int=_parse_number,
    parse_float=_parse_number,
    parse_constant=lambda _: _NOT_A_NUMBER,
    strict=False,
)


def _without_single_surrogates(text: str) -> str:
    if "\\u" not in text:
        return text
    return _ESCAPE.sub(lambda match: _REPLACEMENT if match[2] else match[0], text)


def _convert_response(response: Json) -> None:
    choices = response.get("choices")
    if isinstance(choices, dict):
        choices = response["choices"] = [choices]
    if isinstance(choices, list):
        for position, choice in enumerate(choices):
            if not isinstance(choice, dict):
                raise UnreadableContent(f"choice {position} is not an object")
            _convert_choice(choice, position)
    elif choices is not None:
        raise UnreadableContent("its choices are not a list")
    _convert_usage(response)
    if "id" in response:
        response["id"] = _text_or_none(response["id"])
    _convert_string(response, "model")


def _convert_choice(choice: Json, position: int) -> None:
    if "index" in choice:
        choice["index"] = _index(choice["index"], position)
    for name in ("delta", "message"):
        if name in choice:
            choice[name] = _message(choice[name], name)
    if "text" in choice:
        choice["text"] = _text(choice["text"], "text")
    if "finish_reason" in choice:
        choice["finish_reason"] = _finish_reason(choice["finish_reason"])
    if not isinstance(choice.get("stop_reason"), str | int | None):
        choice["stop_reason"] = None
    _convert_string(choice, "stopping_word")
    _convert_logprobs(choice)
    _convert_usage(choice)


def _convert_logprobs(choice: Json) -> None:
    logprobs = choice.get("logprobs")
    if logprobs is None:
        return
    lists = isinstance(logprobs, dict) and all(
        value is None or isinstance(value, list) for value in logprobs.values()
    )
    if not lists:
        choice["logprobs"] = None


def _message(value: Any, name: str) -> Json | None:
    if not value or value is _NOT_A_NUMBER:
        return {} if name == "delta" else None
    if isinstance(value, str):
        return {"content": value}
    if not isinstance(value, dict):
        raise UnreadableContent(f"its {name} is not an object")
    if "role" in value:
        _convert_string(value, "role")
    _convert_content(value)
    for field in ("reasoning_content", "reasoning", "refusal"):
        if field in value:
            value[field] = _text(value[field], field)
    details = value.get("reasoning_details")
    if details is not None and not isinstance(details, list):
        value["reasoning_details"] = [details] if isinstance(details, dict) else None
    _convert_calls(value)
    return value


def _convert_content(message: Json) -> None:
    """Convert content parts to text, and parts with reasoning to `reasoning_content`."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return
    parts = content if isinstance(content, list) else [content]
    texts, reasoning, refusals = [], [], []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _REASONING_PARTS:
            reasoning.append(_part_text(part, kind))
        elif kind == "refusal":
            refusals.append(_text(part.get("refusal"), "refusal") or "")
        else:
            texts.append(_text(part, "content") or "")
    message["content"] = "".join(texts) if texts or not (reasoning or refusals) else None
    for name, added in (("reasoning_content", reasoning), ("refusal", refusals)):
        if added:
            message[name] = (_text(message.get(name), name) or "") + "".join(added)


def _part_text(part: Json, kind: str) -> str:
    for name in (kind, "text", "content", "summary", "thinking"):
        if part.get(name) is not None:
            return _text(part[name], name) or ""
    return ""


def _text(value: Any, name: str) -> str | None:
    """Return a value in place of text as text; a number keeps its digits.

    Raises:
        UnreadableContent: it is something else.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_text(part, name) or "" for part in value)
    if isinstance(value, dict):
        if not value:
            return None
        kind = value.get("type", "text")
        if kind in _TEXT_PARTS and not isinstance(value.get("text"), dict | None):
            return _text(value["text"], name)
        raise UnreadableContent(f"its {name} is an object without text")
    if value is _NOT_A_NUMBER:
        raise UnreadableContent(f"its {name} is not text")
    return msgspec.json.encode(value).decode()


def _convert_calls(message: Json) -> None:
    calls = message.get("tool_calls")
    if calls is not None:
        calls = [calls] if isinstance(calls, dict) else calls
        if not isinstance(calls, list):
            raise UnreadableContent("its tool calls are not a list")
        message["tool_calls"] = [
            _call(call, position) for position, call in enumerate(calls) if call is not None
        ]
    function = message.get("function_call")
    if function is not None:
        message["function_call"] = _function(function)


def _call(call: Any, position: int) -> Json:
    if not isinstance(call, dict):
        raise UnreadableContent(f"tool call {position} is not an object")
    if call.get("index") is not None:
        call["index"] = _index(call["index"], position)
    if call.get("id") is not None:
        call["id"] = _text_or_none(call["id"])
    function = call.get("function")
    if function is None and ("name" in call or "arguments" in call):
        function = {name: call.pop(name) for name in ("name", "arguments") if name in call}
    if function is not None:
        call["function"] = _function(function)
    return call


def _function(function: Any) -> Json:
    if isinstance(function, str):
        return {"name": function}
    if not isinstance(function, dict):
        raise UnreadableContent("the function of a tool call is not an object")
    if "name" in function:
        function["name"] = _text(function["name"], "function name")
    if _has_constant(function.get("arguments")):
        raise UnreadableContent("the arguments of a tool call contain NaN or Infinity")
    return function


def _has_constant(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_constant, value.values()))
    if isinstance(value, list):
        return any(map(_has_constant, value))
    return value is _NOT_A_NUMBER


def _finish_reason(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):  # TGI and SGLang have an object with the type in their own APIs
        words = (value.get(name) for name in ("type", "reason", "name", "value"))
        return next((word for word in words if isinstance(word, str)), None) or "?"
    if isinstance(value, bool):
        return "stop" if value else None
    return None if value is None or value is _NOT_A_NUMBER else _text_or_none(value)


def _convert_usage(owner: Json) -> None:
    usage = owner.get("usage")
    if usage is None:
        return
    if not isinstance(usage, dict):
        owner["usage"] = None
        return
    convert_counts(usage)


def convert_counts(usage: Json) -> None:
    """Convert the token counts of a usage object to integers, in place."""
    for name in _COUNT_FIELDS:
        if name in usage:
            usage[name] = token_count(usage[name])
    for name in _COUNT_DETAILS:
        details = usage.get(name)
        if details is None:
            continue
        if isinstance(details, dict):
            convert_counts(details)
        else:
            usage[name] = None


def token_count(value: Any) -> int | None:
    """Return a count as an integer; None for what is not a number."""
    number = value if isinstance(value, int | float) else _text_or_none(value)
    try:
        return int(number) if isinstance(number, int) else int(float(number or "nan"))
    except (ValueError, OverflowError):
        return None


def _index(value: Any, position: int) -> int:
    """Return an index; one that is not a number is the position in the list."""
    number = token_count(value)
    return position if number is None else max(0, number)


def _text_or_none(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if value is _NOT_A_NUMBER or not isinstance(value, int | Raw):
        return None
    return msgspec.json.encode(value).decode()


def _convert_string(owner: Json, name: str) -> None:
    if owner.get(name) is not None and not isinstance(owner[name], str):
        owner[name] = _text_or_none(owner[name])
