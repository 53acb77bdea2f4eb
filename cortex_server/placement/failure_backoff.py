"""What went wrong lately, so that the same is not tried again at once.

Loads that failed, nodes that refused or lost one, instances that would not go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cortex_common.schema.instances import InstanceId

REFUSAL_PAUSE_S = 0.25
"""How long a node that refused or lost a load is left alone with that model; doubles with each time in a row."""

MOST_REFUSAL_PAUSE_S = 8.0

UNABLE_FOR_S = 300.0
"""How long a node that can't begin with a model, for want of its weights or its engine, is not asked for it again."""

CRASHED_FOR_S = 300.0
"""How long a node whose engine failed with a model comes after others that have room for it."""


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """What happened several times in a row, and until when it is left at that; monotonic seconds.

    Attributes:
        started: an engine was; it may have said more than the reason.
    """

    times: int
    until: float
    reason: str = ""
    started: bool = False


class FailureBackoff:
    """See the module."""

    def __init__(self) -> None:
        self._failed: dict[str, FailureRecord] = {}
        self._refused: dict[tuple[str, str], FailureRecord] = {}
        self._unable: dict[tuple[str, str], FailureRecord] = {}
        self._crashed: dict[tuple[str, str], float] = {}
        self._lost: dict[str, int] = {}
        self._spared: dict[InstanceId, float] = {}

    @property
    def spared(self) -> Mapping[InstanceId, float]:
        """Instances that would not drain or go, and until when they are left alone."""
        return self._spared

    @property
    def failures(self) -> Mapping[str, FailureRecord]:
        """Models whose last load failed, however long ago."""
        return self._failed

    def failed_lately(self, model: str, now: float) -> FailureRecord | None:
        """Why a model is not loaded again yet."""
        found = self._failed.get(model)
        return found if found is not None and now < found.until else None

    def avoided(self, model: str, now: float) -> dict[str, float]:
        """Nodes that are left alone with a model, and until when."""
        return {n: t.until for (m, n), t in self._refused.items() if m == model and now < t.until}

    def unable(self, model: str, now: float) -> dict[str, str]:
        """Nodes that could not begin with a model lately, and why."""
        found = {n: t for (m, n), t in self._unable.items() if m == model}
        return {n: t.reason for n, t in found.items() if now < t.until}

    def crashed(self, model: str, now: float) -> frozenset[str]:
        """Nodes whose engine failed with a model lately."""
        return frozenset(n for (m, n), t in self._crashed.items() if m == model and now < t)

    def told(self, model: str, now: float) -> dict[str, str]:
        """What went wrong with a model on nodes lately, for people."""
        found = dict.fromkeys(self.crashed(model, now), "an engine of it failed there lately")
        found |= {
            n: f"could not begin with it: {why}" for n, why in self.unable(model, now).items()
        }
        return found | dict.fromkeys(self.avoided(model, now), "refused or lost it a moment ago")

    def failed(
        self, model: str, reason: str, now: float, *, first_s: float, most_s: float, started: bool
    ) -> FailureRecord:
        """It could not be loaded, by an engine that was started or for want of one; the pause doubles each time."""
        times = _times(self._failed.get(model))
        pause = min(first_s * 2.0 ** (times - 1), most_s)
        self._failed[model] = found = FailureRecord(times, now + pause, reason, started)
        # Then all nodes are asked again: somebody may have put there what they lacked.
        for key, unable in self._unable.items():
            if key[0] == model:
                self._unable[key] = replace(unable, until=min(unable.until, found.until))
        return found

    def refused(self, model: str, node: str, now: float) -> None:
        """A node had no room for it after all, or lost it."""
        times = _times(self._refused.get((model, node)))
        pause = min(REFUSAL_PAUSE_S * 2.0 ** (times - 1), MOST_REFUSAL_PAUSE_S)
        self._refused[model, node] = FailureRecord(times, now + pause)

    def could_not_begin(self, model: str, node: str, reason: str, now: float) -> None:
        """It lacks what the load needs; another node may have it."""
        self._unable[model, node] = FailureRecord(1, now + UNABLE_FOR_S, reason)

    def has_crashed(self, model: str, node: str, now: float) -> None:
        """An engine was started and failed; whether that is the node's fault or the model's is not known."""
        self._crashed[model, node] = now + CRASHED_FOR_S

    def lost(self, model: str) -> int:
        """A load of it was lost; returns how many in a row."""
        self._lost[model] = self._lost.get(model, 0) + 1
        return self._lost[model]

    def would_not_go(self, instance: InstanceId, until: float) -> None:
        """An instance is no victim before then."""
        self._spared[instance] = until

    def over(self, model: str) -> None:
        """The model is ready."""
        self._failed.pop(model, None)
        self._lost.pop(model, None)
        self._refused = {k: t for k, t in self._refused.items() if k[0] != model}

    def forgive(self, model: str) -> None:
        """An operator has dealt with it: the next load is tried at once, on any node."""
        self._failed.pop(model, None)
        self._unable = {k: t for k, t in self._unable.items() if k[0] != model}
        self._crashed = {k: t for k, t in self._crashed.items() if k[0] != model}

    def forget_old(self, now: float, failures_s: float) -> None:
        """Spare nobody any more whose time is over; failures count as in a row for so long after their pause."""
        self._spared = {i: until for i, until in self._spared.items() if now < until}
        self._failed = {m: t for m, t in self._failed.items() if now < t.until + failures_s}
        self._unable = {k: t for k, t in self._unable.items() if now < t.until}
        self._crashed = {k: t for k, t in self._crashed.items() if now < t}


def _times(known: FailureRecord | None) -> int:
    return known.times + 1 if known else 1
