"""Per-model request parameters: defaults, overrides, fields to strip, and a limit for max_tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec import Raw

from cortex_server.dialects.json_input import decode

_objects = msgspec.json.Decoder(dict[str, Raw])
_numbers = msgspec.json.Decoder(float)
_MAX_TOKENS_FIELDS = ("max_completion_tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class ParamRules:
    """Changes that the operator wants in requests to a model.

    Attributes:
        defaults: fields to add to requests that lack them; null counts as missing.
        overrides: fields that replace the client's.
        strip: request fields to drop because the engine rejects them.
        clamp_max_tokens: limit the response length to what the context has room for.
    """

    defaults: Mapping[str, object] = field(default_factory=dict)
    overrides: Mapping[str, object] = field(default_factory=dict)
    strip: frozenset[str] = frozenset()
    clamp_max_tokens: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether the rules change nothing, so that the body need not be parsed."""
        return not (self.defaults or self.overrides or self.strip or self.clamp_max_tokens)


def apply_rules(
    body: bytes, rules: ParamRules, *, context: int | None = None, prompt_tokens: int = 0
) -> bytes:
    """Return the body with the rules applied; fields without a rule keep their bytes.

    Args:
        body: a JSON object.
        rules: the model's rules.
        context: tokens of prompt and completion together, if known; required to limit max_tokens.
        prompt_tokens: estimated tokens of the prompt.

    Raises:
        MalformedBody: the body is not a JSON object.
    """
    if rules.is_empty:
        return body
    fields = decode(_objects, body)
    for name, value in rules.defaults.items():
        if bytes(fields.get(name, b"null")) == b"null":
            fields[name] = Raw(msgspec.json.encode(value))
    for name, value in rules.overrides.items():
        fields[name] = Raw(msgspec.json.encode(value))
    for name in rules.strip:
        fields.pop(name, None)
    if rules.clamp_max_tokens and context is not None:
        _clamp_max_tokens(fields, max(1, context - prompt_tokens))
    return msgspec.json.encode(fields)


def _clamp_max_tokens(fields: dict[str, Raw], limit: int) -> None:
    for name in _MAX_TOKENS_FIELDS:
        requested = fields.get(name)
        if requested is None or bytes(requested) == b"null":
            continue
        if decode(_numbers, requested, name) > limit:
            fields[name] = Raw(msgspec.json.encode(limit))
