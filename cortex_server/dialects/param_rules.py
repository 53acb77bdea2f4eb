"""Per-model parameters of chat and completion requests: defaults, overrides, strips, and a clamp."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec import Raw

from cortex_server.dialects.json_input import read

_objects = msgspec.json.Decoder(dict[str, Raw])
_numbers = msgspec.json.Decoder(float)
_MAX_FIELDS = ("max_completion_tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class ParamRules:
    """What the operator wants of the requests to one model.

    Attributes:
        defaults: fields for requests that lack them; a null counts as lacking.
        overrides: fields that replace what the client sent.
        strip: fields that the engine does not bear.
        clamp_max_tokens: cut the answer's length to what the context leaves.
    """

    defaults: Mapping[str, object] = field(default_factory=dict)
    overrides: Mapping[str, object] = field(default_factory=dict)
    strip: frozenset[str] = frozenset()
    clamp_max_tokens: bool = False

    @property
    def idle(self) -> bool:
        """Whether they change nothing, so that the body need not be touched."""
        return not (self.defaults or self.overrides or self.strip or self.clamp_max_tokens)


def apply_rules(
    body: bytes, rules: ParamRules, *, context: int | None = None, prompt_tokens: int = 0
) -> bytes:
    """The body as the rules want it; fields that no rule names keep their bytes.

    Args:
        body: a JSON object.
        rules: of the model.
        context: tokens of prompt and answer together, where known; needed for the clamp.
        prompt_tokens: estimated tokens of the prompt.

    Raises:
        MalformedBody: the body is no JSON object.
    """
    if rules.idle:
        return body
    fields = read(_objects, body)
    for name, value in rules.defaults.items():
        if bytes(fields.get(name, b"null")) == b"null":
            fields[name] = Raw(msgspec.json.encode(value))
    for name, value in rules.overrides.items():
        fields[name] = Raw(msgspec.json.encode(value))
    for name in rules.strip:
        fields.pop(name, None)
    if rules.clamp_max_tokens and context is not None:
        _clamp(fields, max(1, context - prompt_tokens))
    return msgspec.json.encode(fields)


def _clamp(fields: dict[str, Raw], most: int) -> None:
    for name in _MAX_FIELDS:
        asked = fields.get(name)
        if asked is None or bytes(asked) == b"null":
            continue
        if read(_numbers, asked, name) > most:
            fields[name] = Raw(msgspec.json.encode(most))
