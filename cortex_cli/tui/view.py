"""View models of the screen: rows and facts computed from a snapshot, its history and the person's choices. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cortex_cli.render.fleet import device_list, node_memory, percent, problems, progress_text
from cortex_cli.render.json_values import to_plain
from cortex_cli.render.table import brief
from cortex_cli.terminal import neutralize_line
from cortex_cli.tui.history import History, Rate
from cortex_cli.tui.lazy_rows import LazyRows
from cortex_common.schema.fleet import FleetSnapshot, InstanceView, ModelState, ModelView, NodeState
from cortex_common.schema.instances import InstanceState
from cortex_common.units import format_duration, format_mib


class Sort(StrEnum):
    """Orders of the models table."""

    NAME = "name"
    STATE = "state"
    VRAM = "vram"
    REQUESTS = "req/s"
    TOKENS = "tok/s"
    TTFT = "ttft"
    QUEUE = "queue"

    @property
    def next(self) -> Sort:
        """The order after this one; after the last comes the first."""
        orders = list(Sort)
        return orders[(orders.index(self) + 1) % len(orders)]


@dataclass(frozen=True, slots=True)
class Choice:
    """Choices of the person at the screen.

    Attributes:
        words: filter; a model must contain all words, and none of those prefixed with "!".
        sort: column to sort by.
        reverse: whether the order is reversed.
        marked: models that the next action applies to.
    """

    words: str = ""
    sort: Sort = Sort.STATE
    reverse: bool = False
    marked: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A row of the models table.

    Attributes:
        badge: "+" for marked and "*" for pinned.
        status: progress of a load, time until it is unloaded, time since it became idle, or why it failed.
    """

    id: str
    badge: str
    name: str
    state: str
    place: str
    vram: str
    requests: str
    tokens: str
    ttft: str
    queue: str
    status: str


@dataclass(frozen=True, slots=True)
class Summary:
    """Facts of the line that is always visible.

    Attributes:
        problems: worst first.
    """

    nodes: str
    devices: int
    models: str
    memory: str
    requests: str
    tokens: str
    queue: int
    active: int
    errors: str
    problems: tuple[str, ...]


_STATE_ORDER = (
    ModelState.FAILED,
    ModelState.LOADING,
    ModelState.READY,
    ModelState.DRAINING,
    ModelState.STOPPING,
    ModelState.UNLOADED,
)


def summarize(snapshot: FleetSnapshot, history: History) -> Summary:
    """Return the facts of the summary line."""
    memory = [node_memory(n) for n in snapshot.nodes]
    used, total = sum(u for u, _ in memory), sum(t for _, t in memory)
    rate = sum(history.rates.values(), Rate())
    return Summary(
        nodes=f"{sum(n.state is NodeState.UP for n in snapshot.nodes)}/{len(snapshot.nodes)}",
        devices=sum(len(n.devices) for n in snapshot.nodes),
        models=f"{sum(m.state is ModelState.READY for m in snapshot.models)}/{len(snapshot.models)}",
        memory=f"{format_mib(used)}/{format_mib(total)} {percent(used, total)}",
        requests=show_rate(rate.requests),
        tokens=show_rate(rate.tokens),
        queue=sum(m.waiting for m in snapshot.models),
        active=sum(m.in_flight for m in snapshot.models),
        errors=f"{100 * rate.errors / rate.requests:.1f}%" if rate.requests else "0%",
        problems=tuple(neutralize_line(p) for p in problems(snapshot)),
    )


def show_rate(value: float) -> str:
    """Format a rate in about four characters: "0", "0.4", "42", "3.9k"."""
    if value < 0.05:
        return "0"
    if value < 10:
        return f"{value:.1f}"
    return f"{value:.0f}" if value < 1000 else f"{value / 1000:.1f}k"


def model_rows(snapshot: FleetSnapshot, history: History, choice: Choice) -> LazyRows[ModelRow]:
    """Return the models that match the filter, in the chosen order."""
    by_model: dict[str, list[InstanceView]] = {}
    for instance in snapshot.instances():
        by_model.setdefault(instance.model, []).append(instance)
    rates = history.rates
    models = [m for m in snapshot.models if matches_filter(m, choice.words)]
    models.sort(key=lambda m: m.id)
    models.sort(key=_sort_key(choice.sort, rates), reverse=choice.reverse)

    def build(index: int) -> ModelRow:
        m = models[index]
        instances = by_model.get(m.id, [])
        return _row(m, instances, rates.get(m.id), snapshot.at, marked=m.id in choice.marked)

    return LazyRows([m.id for m in models], build)


def matches_filter(model: ModelView, words: str) -> bool:
    """Return whether a model's name, aliases, state, harness and nodes match every word of a filter."""
    if not words:
        return True
    text = " ".join((model.id, *model.aliases, model.state, model.harness, *model.nodes)).lower()
    return all(
        (word[1:] not in text) if word.startswith("!") and len(word) > 1 else (word in text)
        for word in words.lower().split()
    )


def find_model(snapshot: FleetSnapshot | None, words: str) -> ModelView | None:
    """Return the first model that matches a filter."""
    models = snapshot.models if snapshot is not None else ()
    return next((m for m in models if matches_filter(m, words)), None)


def _sort_key(sort: Sort, rates: Mapping[str, Rate]) -> Callable[[ModelView], Any]:
    """Return the sort key: names and states ascending, numbers descending."""
    keys: dict[Sort, Callable[[ModelView], Any]] = {
        Sort.NAME: lambda m: m.id.lower(),
        Sort.STATE: lambda m: _STATE_ORDER.index(m.state),
        Sort.VRAM: lambda m: -(m.vram_mb or 0),
        Sort.REQUESTS: lambda m: -rates.get(m.id, Rate()).requests,
        Sort.TOKENS: lambda m: -rates.get(m.id, Rate()).tokens,
        Sort.TTFT: lambda m: -(m.ttft_p50_ms or 0.0),
        Sort.QUEUE: lambda m: (-m.waiting, -m.in_flight),
    }
    return keys[sort]


def _row(
    model: ModelView, instances: list[InstanceView], rate: Rate | None, at: float, *, marked: bool
) -> ModelRow:
    idle = model.state in {ModelState.UNLOADED, ModelState.FAILED}
    pinned = any(i.pinned for i in instances)
    return ModelRow(
        id=model.id,
        badge=("+" if marked else "") + ("*" if pinned else ""),
        name=neutralize_line(model.id),
        state=model.state.value,
        place=" ".join(_place(i) for i in instances if i.state is not InstanceState.STOPPED),
        vram=format_mib(model.vram_mb) if model.vram_mb else "–",
        requests="–" if idle or rate is None else show_rate(rate.requests),
        tokens="–" if idle or rate is None else show_rate(rate.tokens),
        ttft="–" if model.ttft_p50_ms is None else f"{model.ttft_p50_ms:.0f}ms",
        queue=f"{model.in_flight}+{model.waiting}" if model.waiting else str(model.in_flight),
        status=_status(model, instances, at, pinned=pinned),
    )


def _place(instance: InstanceView) -> str:
    devices = device_list(instance.devices)
    return f"{instance.node}/{devices}" if devices else instance.node


def _status(model: ModelView, instances: list[InstanceView], at: float, *, pinned: bool) -> str:
    if loading := [i for i in instances if i.state is InstanceState.LOADING]:
        return progress_text(loading[0]) or "loading"
    isolated = bool(instances) and all(i.failing for i in instances)
    if isolated or model.state is ModelState.FAILED:
        reason = f"isolated: {instances[0].failing}" if isolated else model.error
        return brief(reason or "unknown reason")
    if pinned:
        return "pinned"
    if model.unload_at is not None and model.state is ModelState.READY:
        return f"unloads in {format_duration(max(0.0, model.unload_at - at))}"
    if model.in_flight or not instances:
        return ""
    last = max(i.last_used for i in instances)
    return f"idle {format_duration(max(0.0, at - last))}" if last else ""


def as_json(model: ModelView) -> str:
    """Return a model as JSON, as `cortex models ls -o json` shows it."""
    return json.dumps(to_plain(model), indent=2, ensure_ascii=False)


def describe(model: ModelView, snapshot: FleetSnapshot, history: History) -> list[tuple[str, str]]:
    """Return the facts of a model as (name, value) pairs, without empty values."""
    rate = history.rates.get(model.id, Rate())
    ttft = (
        ""
        if model.ttft_p50_ms is None
        else f"p50 {model.ttft_p50_ms:.0f}ms  p95 {model.ttft_p95_ms or model.ttft_p50_ms:.0f}ms"
    )
    facts = [
        ("state", model.state.value),
        ("aliases", ", ".join(model.aliases)),
        ("harness", model.harness),
        ("context", str(model.context or "")),
        ("memory", format_mib(model.vram_mb) if model.vram_mb else ""),
        ("pinned on", ", ".join(model.pinned_on)),
        ("requests", f"{model.requests}, {show_rate(rate.requests)}/s, {model.errors} errors"),
        ("tokens", f"{model.tokens_in} in, {model.tokens_out} out, {show_rate(rate.tokens)}/s"),
        ("first token", ttft),
        ("now", f"{model.in_flight} active, {model.waiting} waiting"),
        ("error", model.error or ""),
    ]
    for instance in snapshot.instances():
        if instance.model == model.id:
            facts += _describe_instance(instance, snapshot.at)
    return [(name, neutralize_line(value)) for name, value in facts if value]


def _describe_instance(instance: InstanceView, at: float) -> list[tuple[str, str]]:
    pinned = ", pinned" if instance.pinned else ""
    age = format_duration(at - instance.started_at) if instance.started_at else ""
    return [
        (_place(instance), f"{instance.state.value}{pinned} {progress_text(instance)}".rstrip()),
        ("  instance", instance.id),
        ("  memory", format_mib(instance.vram_used_mb)),
        ("  age", f"{age}, loaded in {format_duration(instance.load_seconds)}" if age else ""),
        ("  engine", f"{instance.harness} {instance.engine_version or ''}".strip()),
        ("  slots", f"{instance.in_flight}/{instance.parallel}" if instance.parallel else ""),
        ("  why here", instance.reason or ""),
        ("  error", instance.error or ""),
    ]
