"""What a translator of requests hands to the data plane."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Translated:
    """A client's request in the words of an engine.

    Attributes:
        body: of POST /v1/chat/completions.
        call_ids: ids of the calls of earlier turns, which the answer must not use again.
        only_first_call: the client wants no parallel calls and the engine has no switch for it.
        dropped: what could not be carried over and was left out, each for one line of the log.
        function_names: how flattened names of functions map back to (namespace, name).
    """

    body: bytes
    call_ids: frozenset[str] = frozenset()
    only_first_call: bool = False
    dropped: tuple[str, ...] = ()
    function_names: dict[str, tuple[str, str]] = field(default_factory=dict)
