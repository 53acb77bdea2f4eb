"""What the OpenAI routes of the engines understand beyond, and short of, OpenAI's own.

Read in their sources: llama.cpp `common/chat.cpp` and `tools/server`, mistral.rs `mistralrs-server-core`, vLLM
0.32 and SGLang 0.5.23 `entrypoints`, whose words are OpenAI's. The embedded engine is mistral.rs without its server:
efforts, but no switch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class EngineTraits:
    """How a chat request must be worded for one kind of engine.

    Attributes:
        named_tool_choice: takes the object that names a function. llama.cpp silently reads it as
            "auto", so there "required" with only that tool says the same.
        parallel_switch: knows `parallel_tool_calls`; elsewhere the gateway keeps only the first call.
        takes_reasoning: renders `reasoning_content` of earlier assistant turns.
        thinking_switch: has `enable_thinking`; elsewhere effort "none" turns thinking off.
        thinking_budget: has `thinking_budget_tokens`; elsewhere the nearest effort is sent.
        cancels_unstreamed: ends an unstreamed request when its client leaves. mistral.rs computes on to the
            end, so it is always asked to stream.
        counts_tokens: has POST /v1/messages/count_tokens.
        continues: has `continue_final_message`. Without it vLLM answers anew, and llama.cpp goes on but
            repeats what the client began.
        efforts: renames efforts that the engine spells otherwise; "none" is no thinking.
    """

    named_tool_choice: bool = True
    parallel_switch: bool = True
    takes_reasoning: bool = False
    thinking_switch: bool = False
    thinking_budget: bool = False
    cancels_unstreamed: bool = True
    counts_tokens: bool = False
    continues: bool = False
    efforts: Mapping[str, str] = field(default_factory=dict)


LLAMACPP = EngineTraits(
    named_tool_choice=False,
    takes_reasoning=True,
    thinking_budget=True,
    counts_tokens=True,
    continues=True,
)
MISTRALRS = EngineTraits(
    parallel_switch=False,
    thinking_switch=True,
    cancels_unstreamed=False,
    counts_tokens=True,
    efforts={"max": "xhigh", "minimal": "low", "none": "off"},
)
EMBEDDED = EngineTraits(parallel_switch=False, efforts=MISTRALRS.efforts)
VLLM = SGLANG = EngineTraits(takes_reasoning=True, counts_tokens=True, continues=True)
GENERIC = EngineTraits()
CORTEX = EngineTraits(takes_reasoning=True, counts_tokens=True, continues=True)
"""Another gateway, which words requests for its engines itself."""

_BY_ENGINE = {
    "llamacpp": LLAMACPP,
    "mistralrs": MISTRALRS,
    "embedded": EMBEDDED,
    "vllm": VLLM,
    "sglang": SGLANG,
    "cortex": CORTEX,
}


def traits_of(engine: str) -> EngineTraits:
    """The traits of a kind of engine; an unknown one is taken at OpenAI's word."""
    return _BY_ENGINE.get(engine, GENERIC)
