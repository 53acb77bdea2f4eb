"""How much a model shall think, in the words of each engine."""

from __future__ import annotations

from dataclasses import dataclass

from cortex_server.dialects.chat import ChatRequest
from cortex_server.dialects.engine_traits import EngineTraits


@dataclass(frozen=True, slots=True)
class Thoughts:
    """What the client asked for.

    Attributes:
        wanted: think, or don't; None leaves it to the model.
        budget_tokens: most tokens to think.
        effort: low, medium, high, xhigh, max; or another word of the client's.
    """

    wanted: bool | None = None
    budget_tokens: int | None = None
    effort: str | None = None


def apply_thoughts(chat: ChatRequest, thoughts: Thoughts, traits: EngineTraits) -> None:
    """Set the fields that say it. At most one switch is set: engines refuse contradictions."""
    if thoughts.wanted is False or thoughts.effort == "none":
        if traits.thinking_switch:
            chat.enable_thinking = False
        else:
            chat.reasoning_effort = traits.efforts.get("none", "none")
        return
    budget = thoughts.budget_tokens
    if budget is not None and traits.thinking_budget:
        chat.thinking_budget_tokens = budget
    if thoughts.effort is not None:
        chat.reasoning_effort = traits.efforts.get(thoughts.effort, thoughts.effort)
    elif thoughts.wanted and traits.thinking_switch:
        chat.enable_thinking = True
    elif budget is not None and not traits.thinking_budget:
        chat.reasoning_effort = _effort_of(budget)


def _effort_of(budget_tokens: int) -> str:
    """The effort nearest to a budget, for engines that know only efforts."""
    if budget_tokens < 4096:
        return "low"
    return "medium" if budget_tokens < 16384 else "high"
