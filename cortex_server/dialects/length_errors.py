"""Errors about length, in the words of all servers: a prompt that is too long, or too large a `max_tokens`.

The two differ for clients: the first is answered by a shorter conversation, the second by a smaller number. Each row of
the table has been seen as a message of the servers that it names.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from cortex_common.errors import BadRequest, MaxTokensTooLarge, PromptTooLong

_MAX_SCANNED = 4000


class LengthError(NamedTuple):
    """What a message about length says.

    Attributes:
        limit: tokens that the context, the prompt or the completion can have.
        prompt: tokens of the prompt.
        max_tokens: the `max_tokens` that was requested.
        is_about_completion: whether `max_tokens` is too large, rather than the prompt.
    """

    limit: int | None = None
    prompt: int | None = None
    max_tokens: int | None = None
    is_about_completion: bool = False

    def to_error(self, message: str, details: dict[str, int]) -> BadRequest:
        """Return the error, with the numbers in its details."""
        if self.is_about_completion:
            limit_name = "n_ctx" if self.prompt is not None else "limit"
            numbers = {limit_name: self.limit, "n_prompt_tokens": self.prompt}
            known = {"max_tokens": self.max_tokens} | numbers
            return MaxTokensTooLarge(
                message, param="max_tokens", details=details | _without_none(known)
            )
        known = {"n_prompt_tokens": self.prompt, "n_ctx": self.limit}
        return PromptTooLong(message, details=details | _without_none(known))


def _without_none(numbers: dict[str, int | None]) -> dict[str, int]:
    return {name: number for name, number in numbers.items() if number is not None}


# {limit}, {prompt}, {asked} and {total} are numbers; {n} is one without a meaning.
_PROMPT_AND_COMPLETION = [
    # OpenRouter
    r"context length is {limit} tokens\W.{0,40}?about {total} tokens \({prompt} of text.{1,60}?, {asked} in the output",
    # OpenAI, DeepSeek, older vLLM, DeepInfra
    r"context length is {limit} tokens\W.{0,40}?requested (?:about )?{total} tokens \({prompt} \D{1,40}?{asked} ",
    # SGLang
    r"maximum context length of {limit} tokens\W.{0,40}?total of {total} tokens: {prompt} tokens \D{1,40}?{asked} ",
    # vLLM
    r"is too large: {asked}\. .{0,30}maximum context length is {limit} tokens and your request has {prompt} ",
    r"passed {prompt} input tokens and requested {asked} output tokens\W.{0,60}?context length is only {limit} tokens",
    # Anthropic
    r"input length and `?max_tokens`? exceed context limit: {prompt} \+ {asked} > {limit}",
    # TGI, Together
    r"`inputs` tokens \+ `max_new_tokens` must be <= {limit}\. Given: {prompt} `inputs` tokens and {asked} ",
]
_COMPLETION = [
    # OpenAI
    r"max_(?:completion_)?tokens is too large: {asked}\. This model supports at most {limit} completion tokens",
    # DeepSeek, DashScope
    r"range of max_(?:completion_)?tokens (?:is|should be) \[{n}, ?{limit}\]",
    # Groq, xAI
    r"max_(?:completion_)?tokens`? must be (?:less than or equal to|at most|<=) `?{limit}",
    # Anthropic
    r"max_tokens: {asked} > {limit}, which is the maximum",
    # Bedrock
    r"maximum tokens you requested exceeds the model limit of {limit}",
    # Gemini
    r"maxOutputTokens value of {asked} but the supported range is from {n} \(inclusive\) to {limit}",
    # TGI, TabbyAPI
    r"`?max_(?:new_|completion_)?tokens`?'? (?:is too large|exceeds|is greater than|cannot exceed)",
]
_PROMPT = [
    # LM Studio
    r"keep the first {prompt} tokens when .{0,30}overflows.{0,60}context length of only {limit} tokens",
    r"keep from the initial prompt is greater than the context length(?: \(n_keep: {prompt} ?>= ?n_ctx: {limit}\))?",
    r"Reached context length of {limit} tokens",
    # xAI
    r"maximum prompt length is {limit} but the request contains {prompt} tokens",
    r"exceeds the maximum prompt length",
    # Groq, Cerebras
    r"reduce the length of the messages(?: or completion)?\.? Current length is {prompt} while limit is {limit}",
    # MiniMax
    r"context window exceeds limit",
    # Zhipu
    r"prompt exceeds max length|prompt ?超长",
    # DashScope
    r"range of input length should be \[{n}, ?{limit}\]",
    # TensorRT-LLM
    r"prompt length \({prompt}\)(?:, query length \({n}\))? should not exceed max_num_tokens \({limit}\)",
    r"prompt length \({prompt}\) exceeds maximum (?:input|sequence) length \({limit}\)",
    r"max_seq_len \({limit}\) - splitt?ed_prompt_len \({prompt}\)",
    # TGI, text-embeddings-inference
    r"`inputs` must have less than {limit} tokens\. Given: {prompt}",
    # TabbyAPI
    r"(?:prompt|context) length {prompt} is greater than max_seq_len {limit}",
    # Gemini, Vertex
    r"input token count(?: \({prompt}\))? exceeds the maximum number of tokens allowed(?: \({limit}\))?",
    r"number of input tokens exceeds maximum length",
    # Moonshot
    r"exceeded model token limit: {limit} \(requested: {prompt}\)",
    r"input token length too long",
    # SGLang, Together
    r"input \({prompt} tokens\) is longer than the model's context length \({limit} tokens\)",
    r"input length \(?{prompt}(?: tokens)?\)? exceeds the maximum allowed (?:input )?length (?:of )?\(?{limit} tokens",
    r"input length \({prompt}\) exceeds model's maximum context length \({limit}\)",
    # OpenAI, vLLM, DeepInfra, OpenRouter
    r"maximum context length (?:is|of) {limit} tokens\W.{0,60}?(?:resulted in|request has|about|requested) {prompt} ",
    r"maximum context length (?:is|of) {limit} tokens",
    r"prompt \(length {prompt}\) is longer than the maximum model length of {limit}",
    r"exceeds the context window",
    # llama.cpp
    r"request \({prompt} tokens\) exceeds the available context size \({limit} tokens\)",
    r"input \({prompt} tokens\) is too large to process.{0,80}batch size: {limit}\)",
    r"exceeds the available context size",
    # llama-cpp-python
    r"requested tokens \({prompt}\) exceed context window of {limit}",
    # cortex's embedded engine
    r"prompt is longer than the context of {limit} tokens",
    # mistral.rs
    r"prompt sequence length is greater than {limit}",
    # Ollama
    r"prompt too long; exceeded max context length",
    r"input length exceeds the context length",
    # Mistral
    r"prompt contains {prompt} tokens.{0,40}too large for model with {limit} maximum context length",
    r"prompt {prompt} > {limit} maximum context length",
    # Fireworks
    r"prompt is too long: {prompt}, model maximum context length: {limit}",
    # Anthropic, Bedrock
    r"prompt is too long: {prompt}(?: tokens)? > {limit}",
    r"input is too long for requested model|too many input tokens",
    # Cohere
    r"tokens in the prompt cannot exceed {limit} - received {prompt}",
    r"too many tokens: .{0,80}limit for this model is {limit} tokens",
    # GitHub Copilot
    r"prompt token count of {prompt} exceeds the limit of {limit}",
    # Perplexity
    r"total length of all messages is too long",
    # without numbers, of several servers
    r"prompt is too long|prompt length .{0,40}(?:exceeds|longer)|reduce the length of the (?:messages|input)",
    r"maximum context length|longer than the (?:model'?s? )?(?:maximum )?context",
    r"context (?:length|size|window) (?:has been |is |was )?exceeded|context_length_exceeded|exceed_context_size",
    r"exceeds? (?:the |this )?(?:available |model'?s? )?(?:maximum )?context|token limit exceeded",
    r"exceeds? the maximum (?:model )?(?:sequence )?length|tokens\) is too large to process",
]

_CODES = frozenset(
    {
        "context_length_exceeded",
        "exceed_context_size_error",
        "context_window_exceeded",
        "too_many_prompt_tokens",
        "prompt_too_long",
        "1261",  # Zhipu
    }
)
_RATE = re.compile(r"per (?:second|minute|hour|day)|rate.?limit|too many requests", re.IGNORECASE)
"""Messages about a rate, which the words of the table also occur in."""


def _compile(pattern: str) -> re.Pattern[str]:
    for name in ("limit", "prompt", "asked", "total"):
        pattern = pattern.replace(f"{{{name}}}", rf"(?P<{name}>\d[\d,]{{0,14}})(?:\.0)?")
    return re.compile(pattern.replace("{n}", r"\d+(?:\.0)?"), re.IGNORECASE | re.DOTALL)


_TABLE = [
    (_compile(pattern), is_about_completion)
    for patterns, is_about_completion in (
        (_PROMPT_AND_COMPLETION, False),
        (_COMPLETION, True),
        (_PROMPT, False),
    )
    for pattern in patterns
]


def find_length_error(message: str, codes: set[str] | None = None) -> LengthError | None:
    """Return what an error says about length, or None if it is about something else.

    Args:
        message: the message of the engine.
        codes: its code and type.
    """
    text = message[:_MAX_SCANNED]
    if _RATE.search(text) is None:
        for pattern, is_about_completion in _TABLE:
            match = pattern.search(text)
            if match is not None:
                return _read(match, is_about_completion=is_about_completion)
    return LengthError() if codes is not None and codes & _CODES else None


def _read(match: re.Match[str], *, is_about_completion: bool) -> LengthError:
    numbers = {k: int(v.replace(",", "")) for k, v in match.groupdict().items() if v is not None}
    limit, prompt, asked = numbers.get("limit"), numbers.get("prompt"), numbers.get("asked")
    if prompt is not None and asked is not None and limit is not None:
        # A prompt that fits leaves room for a shorter completion.
        is_about_completion = prompt < limit
    return LengthError(limit, prompt, asked, is_about_completion)
