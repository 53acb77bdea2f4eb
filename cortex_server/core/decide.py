"""The plan for a wish, with what went wrong lately in mind.

What is done for those who wait, and foreseen for those who only ask.
"""

from __future__ import annotations

from dataclasses import replace

from cortex_server.placement.failure_backoff import Troubles
from cortex_server.placement.planner import Impossible, Load, Plan, Wait, plan
from cortex_server.placement.policy import Policy
from cortex_server.placement.state import Wish, World


def decide(
    wish: Wish,
    world: World,
    policy: Policy,
    troubles: Troubles,
    now: float,
    *,
    forgiven: bool = False,
) -> Plan:
    """What to do for a wish.

    Args:
        wish: for what.
        world: the fleet, and what is decided about it.
        policy: the operator's choices.
        troubles: what went wrong lately.
        now: monotonic seconds.
        forgiven: as an operator wishes it, who forgives what engines did.
    """
    model = wish.profile.id
    avoid = wish.avoid.union(troubles.avoided(model, now))
    spared = frozenset(i for i, until in troubles.spared.items() if now < until)
    wish = replace(wish, spared=spared, avoid=avoid)
    if forgiven:
        return plan(wish, world, policy)
    wish = replace(wish, avoid=avoid.union(troubles.unable(model, now)))
    decided = plan(wish, world, policy)
    crashed = troubles.crashed(model, now)
    if not isinstance(decided, Load) or decided.node not in crashed:
        return decided
    # Elsewhere, where that costs nobody anything, if an engine failed there: another host may be sound.
    other = plan(replace(wish, avoid=wish.avoid | crashed, may_evict=False), world, policy)
    return other if isinstance(other, Load) else decided


def foresee(
    wish: Wish,
    world: World,
    policy: Policy,
    troubles: Troubles,
    now: float,
    *,
    insists: bool = False,
) -> Plan:
    """What would become of a wish that somebody had now; see `decide`, and `Ask.insists`."""
    model = wish.profile.id
    trouble = None if insists else troubles.failed_lately(model, now)
    if trouble is not None:
        return Wait((), f"its last load failed: {trouble.reason}")
    found = decide(wish, world, policy, troubles, now, forgiven=insists)
    if isinstance(found, Impossible) and (resting := troubles.avoided(model, now)):
        nodes = ", ".join(sorted(resting))
        return Wait((), f"{nodes} refused or lost it a moment ago, and is asked again soon")
    return found
