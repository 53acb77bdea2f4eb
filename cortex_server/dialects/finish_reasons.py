"""Finish reasons: the words of all engines, and what they mean.

Sources: the APIs of OpenAI, Anthropic, Gemini, Bedrock, Cohere, DeepSeek, Mistral, Moonshot, OpenRouter, Together and
Zhipu, and the servers llama.cpp, mistral.rs, Ollama, SGLang, TensorRT-LLM, TGI and vLLM.
"""

from __future__ import annotations

from enum import Enum

from cortex_common.errors import CortexError, Unavailable, UpstreamFailed


class FinishKind(Enum):
    """What a finish reason means; the value is OpenAI's word for it, if there is one."""

    COMPLETE = "stop"
    TOOL_CALLS = "tool_calls"
    FUNCTION_CALL = "function_call"
    CUT = "length"
    REFUSED = "content_filter"
    FAILED = ""
    UNKNOWN = "?"


_WORDS: dict[FinishKind, str] = {
    FinishKind.COMPLETE: """
        stop eos eos_token end_turn stop_sequence stop_token complete completed finish finished done end
        """,
    FinishKind.TOOL_CALLS: "tool_calls tool_call tool_use",
    FinishKind.FUNCTION_CALL: "function_call",
    FinishKind.CUT: """
        length max_tokens max_length max_new_tokens max_output_tokens max_completion_tokens model_length
        model_context_window_exceeded context_length context_length_exceeded context_window_exceeded token_limit
        repetition error_limit
        """,
    FinishKind.REFUSED: """
        content_filter content_filtered content_policy_violation content_blocked refusal refused sensitive safety
        recitation blocklist blocked prohibited_content spii image_safety image_prohibited_content moderation
        guardrail_intervened guardrail error_toxic
        """,
    FinishKind.FAILED: """
        abort aborted error errored failed failure exception internal_error server_error network_error
        insufficient_system_resource engine_overloaded overloaded cancel canceled cancelled user_cancel timeout
        timed_out malformed_function_call unexpected_tool_call too_many_tool_calls malformed_model_output
        malformed_tool_use
        """,
}
_KINDS = {word: kind for kind, words in _WORDS.items() for word in words.split()}
OPENAI_WORDS = frozenset(kind.value for kind in _WORDS if kind is not FinishKind.FAILED)
"""OpenAI's own words, which need no classification."""
_OVERLOADED = {"insufficient_system_resource", "engine_overloaded", "overloaded"}


def classify(reason: str) -> FinishKind:
    """Return what a finish reason means, regardless of case and of `-` or a space for `_`."""
    return _KINDS.get(_word(reason), FinishKind.UNKNOWN)


def openai_word(reason: str) -> str:
    """Return OpenAI's word for a finish reason; an unknown word is returned unchanged."""
    kind = classify(reason)
    return reason if kind in {FinishKind.UNKNOWN, FinishKind.FAILED} else kind.value


def failure(reason: str) -> CortexError | None:
    """Return the error that a finish reason reports, or None if the response did not fail."""
    if classify(reason) is not FinishKind.FAILED:
        return None
    error = Unavailable if _word(reason) in _OVERLOADED else UpstreamFailed
    return error(f"The engine ended its response with the finish reason {reason!r}")


def _word(reason: str) -> str:
    return reason.strip().lower().replace("-", "_").replace(" ", "_")
