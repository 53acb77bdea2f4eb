"""Engine traits: which extensions of the OpenAI chat API an engine supports, and which standard fields it lacks.

A neuron reports the traits of each harness in GET /discovery, and the gateway adapts requests accordingly. The traits
of an engine that both a harness and an external upstream (`engine` of [[upstreams]]) can name are defined here; any
other harness defines its own.

The engine of an upstream is detected by who owns the models that it lists, unless it is configured.

Sources: llama.cpp `common/chat.cpp` and `tools/server`, mistral.rs `mistralrs-server-core`, and the `entrypoints` of
vLLM 0.32 and SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pydantic import Field

from cortex_common.schema.base import WireModel


class EngineTraits(WireModel):
    """How a chat request must be adapted for an engine. The defaults describe OpenAI's own API.

    Attributes:
        named_tool_choice: accepts a `tool_choice` object that names a function. llama.cpp silently reads it as
            "auto"; it gets "required" and only the named tool instead.
        parallel_tool_calls: accepts `parallel_tool_calls`. For other engines the gateway keeps only the first call
            of a response.
        reasoning_content: renders `reasoning_content` of earlier assistant messages.
        enable_thinking: accepts `enable_thinking`. Elsewhere effort "none" turns thinking off.
        thinking_budget_tokens: accepts `thinking_budget_tokens`. Other engines get the nearest effort.
        cancels_unstreamed: stops computing an unstreamed answer when the client disconnects. mistral.rs does not,
            so the gateway always requests a stream from it.
        count_tokens: has POST /v1/messages/count_tokens.
        continue_final_message: accepts `continue_final_message`. Without it, vLLM starts a new answer, and
            llama.cpp repeats the prefilled text before continuing it.
        effort_names: the engine's spelling of `reasoning_effort` values that it names differently. "none" means no
            thinking.
        top_k: accepts `top_k`, which is not part of OpenAI's API.
        openai_reasoning_models: serves OpenAI's reasoning models under OpenAI's names. They reject `max_tokens`,
            temperature, top_p and some values of `reasoning_effort`.
        thinking_type: accepts `thinking: {"type": "enabled" | "disabled"}`, and no `reasoning_effort`.
        requires_reasoning: rejects an assistant message with tool calls but without `reasoning_content`.
    """

    named_tool_choice: bool = True
    parallel_tool_calls: bool = True
    reasoning_content: bool = False
    enable_thinking: bool = False
    thinking_budget_tokens: bool = False
    cancels_unstreamed: bool = True
    count_tokens: bool = False
    continue_final_message: bool = False
    effort_names: Mapping[str, str] = Field(default_factory=dict)
    top_k: bool = False
    openai_reasoning_models: bool = False
    thinking_type: bool = False
    requires_reasoning: bool = False


OPENAI = EngineTraits(openai_reasoning_models=True)
LLAMACPP = EngineTraits(
    top_k=True,
    named_tool_choice=False,
    reasoning_content=True,
    thinking_budget_tokens=True,
    count_tokens=True,
    continue_final_message=True,
)
MISTRALRS = EngineTraits(
    top_k=True,
    parallel_tool_calls=False,
    enable_thinking=True,
    cancels_unstreamed=False,
    count_tokens=True,
    effort_names={"max": "xhigh", "minimal": "low", "none": "off"},
)
VLLM = EngineTraits(
    reasoning_content=True, count_tokens=True, continue_final_message=True, top_k=True
)
SGLANG = VLLM
CORTEX = VLLM
"""Another cortex gateway, which adapts requests to its own engines."""
DEEPSEEK = EngineTraits(reasoning_content=True, thinking_type=True, requires_reasoning=True)
MOONSHOT = DEEPSEEK
"""The API of Moonshot AI, which serves Kimi."""

UPSTREAM_TRAITS: Mapping[str, EngineTraits] = {
    "openai": OPENAI,
    "llamacpp": LLAMACPP,
    "mistralrs": MISTRALRS,
    "vllm": VLLM,
    "sglang": SGLANG,
    "cortex": CORTEX,
    "deepseek": DEEPSEEK,
    "moonshot": MOONSHOT,
}
"""Traits of external upstreams, by `engine` of [[upstreams]]."""


def detect_engine(owners: Collection[str], models: Collection[str]) -> str:
    """Return the engine of an upstream, "openai" if that is unknown.

    Args:
        owners: `owned_by` of the models that it lists.
        models: their names. mistral.rs owns its models "local", as other servers do, but always lists "default" too.
    """
    known = {owner.lower() for owner in owners}
    if known == {"local"} and "default" in models:
        return "mistralrs"
    found = known & UPSTREAM_TRAITS.keys()
    return found.pop() if len(known) == 1 and found else "openai"
