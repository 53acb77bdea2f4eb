"""Token counts, as engines report them under the names of all APIs."""

from __future__ import annotations

from msgspec import Struct

_MAX_TOKEN_COUNT = 1 << 40


class PromptTokensDetails(Struct, gc=False):
    """`usage.prompt_tokens_details`, or `input_tokens_details`."""

    cached_tokens: int | None = None


class CompletionTokensDetails(Struct, gc=False):
    """`usage.completion_tokens_details`, or `output_tokens_details`."""

    reasoning_tokens: int | None = None


class Usage(Struct):
    """Token counts reported by the engine, under the names of all APIs; completion tokens include reasoning.

    Names besides OpenAI's: `prompt_cache_hit_tokens` (DeepSeek), `cached_tokens` (Moonshot), `cache_read_input_tokens`
    (Anthropic, where input tokens exclude cached ones).
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: PromptTokensDetails | None = None
    output_tokens_details: CompletionTokensDetails | None = None
    total_tokens: int | None = None
    prompt_cache_hit_tokens: int | None = None
    cached_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    reasoning_tokens: int | None = None

    @property
    def is_reported(self) -> bool:
        """Whether the engine counted anything; some send an empty object in each chunk."""
        return (
            self.prompt_tokens is not None
            or self.input_tokens is not None
            or self.completion_tokens is not None
            or self.output_tokens is not None
            or self.total_tokens is not None
        )

    @property
    def prompt(self) -> int:
        """Prompt tokens, including cached ones."""
        if self.prompt_tokens is not None:
            return self.prompt_tokens
        if self.input_tokens is not None:
            written = (self.cache_read_input_tokens or 0) + (self.cache_creation_input_tokens or 0)
            return self.input_tokens + written
        return max(0, (self.total_tokens or 0) - self.completion)

    @property
    def completion(self) -> int:
        """Completion tokens."""
        return self.completion_tokens or self.output_tokens or 0

    @property
    def cached(self) -> int:
        """Prompt tokens that came from the engine's cache."""
        details = self.prompt_tokens_details or self.input_tokens_details
        cached = (
            (details is not None and details.cached_tokens)
            or self.prompt_cache_hit_tokens
            or self.cache_read_input_tokens
            or self.cached_tokens
        )
        return min(cached, self.prompt) if cached else 0

    @property
    def reasoning(self) -> int:
        """Completion tokens spent on reasoning, if the engine reports them."""
        details = self.completion_tokens_details or self.output_tokens_details
        return (details.reasoning_tokens if details else None) or self.reasoning_tokens or 0

    @property
    def bounded_counts(self) -> tuple[int, int, int]:
        """Prompt, completion and cached tokens, clamped to a sane range.

        A counter must never decrease, and SQLite would reject a batch with an integer that is too large.
        """
        prompt, cached = _clamp_count(self.prompt), self.cached
        return (
            prompt,
            _clamp_count(self.completion),
            min(_clamp_count(cached), prompt) if cached else 0,
        )


def _clamp_count(tokens: int) -> int:
    return min(max(tokens, 0), _MAX_TOKEN_COUNT)
