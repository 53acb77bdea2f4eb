"""A plan as data for people: the same plan that would be carried out, with every device's ledger."""

from __future__ import annotations

from collections.abc import Mapping

from cortex_common.schema.fleet import InstanceView
from cortex_common.schema.plans import LedgerLine, PlannedEviction, PlanView
from cortex_server.placement.explain import refusals
from cortex_server.placement.fit import shapes
from cortex_server.placement.planner import Impossible, Join, Load, Plan, Serve, Wait
from cortex_server.placement.policy import Policy
from cortex_server.placement.state import Wish, World


def plan_view(
    wish: Wish, found: Plan, world: World, policy: Policy, lately: Mapping[str, str]
) -> PlanView:
    """What would be done for a wish, and what speaks for or against each device.

    Args:
        wish: for what.
        found: what was decided.
        world: that this was decided on.
        policy: the operator's choices.
        lately: by node, what went wrong with the model there.
    """
    model = wish.profile.id
    ledger = _ledger(wish, found, world, policy, lately)
    match found:
        case Serve(instances):
            why = f"ready as {', '.join(instances)}"
            nodes = [r.node.name for r in world.rooms if {i.id for i in r.instances} & {*instances}]
            return PlanView(
                model=model, action="serve", node=", ".join(nodes) or None, why=why, ledger=ledger
            )
        case Join(node, _):
            why = f"it is being loaded on {node}"
            return PlanView(model=model, action="join", node=node, why=why, ledger=ledger)
        case Wait(_, why):
            return PlanView(model=model, action="wait", why=why, ledger=ledger)
        case Impossible(no_node=no_node, cordoned=cordoned):
            why = "no device could hold it, however long one waited"
            if no_node:
                why = "no node that could serve it answers"
            if cordoned:
                why = f"it fits only on nodes that are cordoned: {', '.join(cordoned)}"
            return PlanView(model=model, action="impossible", why=why, ledger=ledger)
        case Load():
            return PlanView(
                model=model,
                action="load",
                node=found.node,
                devices=found.devices,
                device_mb=found.shape.size.device_mb or None,
                size_source=found.shape.size.source.value,
                evictions=_evictions(found, world),
                why="; but ".join(filter(None, (found.why, lately.get(found.node)))),
                ledger=ledger,
            )


def _evictions(found: Load, world: World) -> tuple[PlannedEviction, ...]:
    views = {i.id: i for room in world.rooms for i in room.instances}
    return tuple(eviction(views[i], world.now) for i in found.evictions)


def eviction(view: InstanceView, now: float) -> PlannedEviction:
    """What ending an instance would free and disturb; `now` is Unix seconds."""
    return PlannedEviction(
        instance=view.id,
        model=view.model,
        node=view.node,
        frees_mb=view.vram_used_mb,
        in_flight=view.in_flight,
        idle_s=round(max(0.0, now - view.last_used), 1),
    )


def _ledger(
    wish: Wish, found: Plan, world: World, policy: Policy, lately: Mapping[str, str]
) -> tuple[LedgerLine, ...]:
    rooms = {room.node.name: room for room in world.rooms}
    layouts = shapes(wish.profile, world.sizes)
    lines: list[LedgerLine] = []
    for why in refusals(wish.profile, wish.where, layouts, world.rooms, policy):
        devices = {d.index: d for d in rooms[why.node].devices}
        device = devices.get(why.device) if why.device is not None else None
        chosen = isinstance(found, Load) and why.node == found.node and why.device in found.devices
        lines.append(
            LedgerLine(
                node=why.node,
                device=why.device,
                name=device.name if device else "",
                total_mb=device.total_mb if device else 0,
                available_mb=device.available_mb if device else 0,
                chosen=chosen,
                reason=None
                if chosen
                else "; ".join(filter(None, (why.reason, lately.get(why.node)))),
                missing_mb=why.missing_mb,
                reclaimable_mb=why.reclaimable_mb,
            )
        )
    return tuple(lines)
