"""What keys and commands do to the fleet: ask where it disturbs, call, and say which command does the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeVar

from rich.text import Text
from textual.app import App

from cortex_cli.color import Paint
from cortex_cli.render.defrag import headline as headline_of_defrag
from cortex_cli.render.defrag import move_line, restart_line
from cortex_cli.render.plan import cost, drain_text, headline, plan_text
from cortex_cli.tui.bars import Ghost
from cortex_cli.tui.commands import Command, Verb
from cortex_cli.tui.operations import Operator
from cortex_cli.tui.screens.dialogs import Confirm, Page
from cortex_common.errors import CortexError
from cortex_common.schema.fleet import FleetSnapshot, ModelView
from cortex_common.schema.operations import (
    DrainNode,
    EvictModel,
    LoadModel,
    PinModel,
    UnloadModel,
    UnpinModel,
)
from cortex_common.schema.plans import ApplyDefrag, DefragRequest, PlanLoad, PlanView
from cortex_common.units import format_duration, format_mib

T = TypeVar("T")

_TOAST_S = 6.0
_CORDONED = "Nothing new is placed on it; what it has goes on serving."
_OPEN = "New instances may be placed on it."
_FEASIBLE = {"load", "join", "wait"}


def ghosts(plans: Sequence[PlanView]) -> list[Ghost]:
    """The memory that plans would take, for the bars."""
    return [
        Ghost(p.node, index, p.model, p.device_mb or 0)
        for p in plans
        if p.action == "load" and p.node
        for index in p.devices
    ]


class Actions:
    """See the module.

    Args:
        app: where questions and answers are shown.
        operator: whom to ask.
        show_ghosts: draws what is planned while a question about it is open.
    """

    def __init__(
        self,
        app: App[None],
        operator: Operator,
        show_ghosts: Callable[[Sequence[Ghost]], None],
    ) -> None:
        self._app = app
        self._operator = operator
        self._show_ghosts = show_ghosts

    async def load(
        self, models: Sequence[str], node: str | None = None, devices: tuple[int, ...] = ()
    ) -> None:
        """Show what loading would do, and do it after a yes; where it can't be done, show why."""
        requests = [PlanLoad(model=m, node=node, devices=devices) for m in models]
        plans = [p for w in requests if (p := await self._try(self._operator.plan_load(w), "plan"))]
        for plan in plans:
            if plan.action == "serve":
                self.say(headline(plan))
            elif plan.action not in _FEASIBLE:
                self._app.push_screen(Page(plan.model, Text(plan_text(plan, Paint()))))
        feasible = [p for p in plans if p.action in _FEASIBLE]
        if not feasible or not await self._agreed(feasible):
            return
        await asyncio.gather(
            *(
                self._load(LoadModel(model=p.model, node=node, devices=devices, wait=True))
                for p in feasible
            )
        )

    async def _load(self, request: LoadModel) -> None:
        """Load a model and tell what came of it; that it begins is seen in the table."""
        where = "".join(f" --gpu {request.node}/{d}" for d in request.devices) or (
            f" --node {request.node}" if request.node else ""
        )
        line = f"cortex models load {request.model}{where}"
        if done := await self._try(self._operator.load(request), line):
            place = f" on {', '.join(done.nodes)}" if done.nodes else ""
            took = f" after {format_duration(done.seconds)}" if done.seconds else ""
            self.say(f"{done.model} is {done.state.value}{place}{took}", title=line)

    async def _agreed(self, plans: Sequence[PlanView]) -> bool:
        details = []
        for plan in plans:
            each = " on each device" if len(plan.devices) > 1 else ""
            needs = f", {format_mib(plan.device_mb)}{each}" if plan.device_mb else ""
            details.append(headline(plan) + needs)
            details += [f"  {cost(e)}" for e in plan.evictions]
        if len(plans) > 1:
            details.append("Each is planned as if alone; together they may go elsewhere.")
        self._show_ghosts(ghosts(plans))
        try:
            names = ", ".join(p.model for p in plans)
            return await self._ask(f"Load {names}?", details)
        finally:
            self._show_ghosts(())

    async def unload(self, models: Sequence[str], fleet: FleetSnapshot) -> None:
        """Unload models, after a question that tells what that disturbs."""
        meant = [m for name in models if (m := fleet.model(name))]
        if meant and not any(m.instances or m.waiting for m in meant):
            self.say(f"{', '.join(m.id for m in meant)}: not loaded", severity="warning")
            return
        again = "All instances end; whoever asks for the model has it loaded again."
        if not await self._ask(f"Unload {', '.join(models)}?", [*_disturbed(meant, fleet), again]):
            return
        for model in models:
            line = f"cortex models unload {model}"
            if done := await self._try(self._operator.unload(UnloadModel(model=model)), line):
                self.say(f"{done.model} is {done.state.value}", title=line)

    async def evict(self, models: Sequence[str]) -> None:
        """End one instance of each model, after a question; what can't be evicted is told at once."""
        plans: dict[str, str] = {}
        for model in models:
            line = f"cortex models evict {model}"
            plan = await self._try(self._operator.plan_evict(EvictModel(model=model)), line)
            if plan is not None:
                plans[model] = cost(plan)
        question = f"Evict one instance of {', '.join(plans)}?"
        details = [*plans.values(), "The gateway may load it again, here or elsewhere."]
        if not plans or not await self._ask(question, details):
            return
        for model in plans:
            line = f"cortex models evict {model}"
            if done := await self._try(self._operator.evict(EvictModel(model=model)), line):
                self.say(f"{done.model} is {done.state.value}", title=line)

    async def pin(
        self, models: Sequence[str], fleet: FleetSnapshot, *, wanted: bool | None = None
    ) -> None:
        """Pin models or unpin them, by default the other way round; nothing is disturbed, so nobody is asked."""
        pinned = {i.model for i in fleet.instances() if i.pinned}
        for model in models:
            unpins = (model in pinned) if wanted is None else not wanted
            if unpins:
                line = f"cortex models unpin {model}"
                left = await self._try(self._operator.unpin(UnpinModel(model=model)), line)
                if left is not None:
                    still = " here; its profile or another pin remains" if left else ""
                    self.say(f"{model} is no longer pinned{still}", title=line)
            else:
                line = f"cortex models pin {model}"
                if done := await self._try(self._operator.pin(PinModel(model=model)), line):
                    self.say(f"{done.model} is pinned", title=line)

    async def cordon(self, node: str, fleet: FleetSnapshot, *, wanted: bool | None = None) -> None:
        """Keep new work off a node or let it on again, by default the other way round."""
        view = fleet.node(node)
        if wanted is None:
            wanted = view is None or not view.cordoned
        if wanted:
            verb, call, what = "cordon", self._operator.cordon, _CORDONED
        else:
            verb, call, what = "uncordon", self._operator.uncordon, _OPEN
        line = f"cortex nodes {verb} {node}"
        if not await self._ask(f"{verb.capitalize()} {node}?", [what]):
            return
        if done := await self._try(call(node), line):
            self.say(f"{done.node} is {'cordoned' if done.cordoned else 'open'}", title=line)

    async def drain(self, node: str) -> None:
        """Empty a node, after a question."""
        line = f"cortex nodes drain {node}"
        plan = await self._try(self._operator.plan_drain(node), line)
        if plan is None:
            return
        details = [drain_text(plan), "It is cordoned: nothing new is placed there."]
        if not await self._ask(f"Drain {node}?", details):
            return
        if done := await self._try(self._operator.drain(DrainNode(node=node)), line):
            told = f"moved {len(done.moved)}, unloaded {len(done.unloaded)}, kept {len(done.kept)}"
            self.say(told, title=line)

    async def cancel(self, request: str) -> None:
        """End a request, after a question."""
        line = f"cortex requests cancel {request}"
        details = ["Its client is told, its engine stops.", line]
        if not await self._ask(f"Cancel {request}?", details):
            return
        if done := await self._try(self._operator.cancel(request), line):
            self.say(f"{done.id} of {done.key or 'nobody'} is cancelled", title=line)

    async def defrag(self, model: str | None = None) -> None:
        """Show the moves that would make a large free block, and make them after a yes."""
        line = f"cortex defrag --for {model}" if model else "cortex defrag"
        request = DefragRequest(model=model)
        plan = await self._try(self._operator.plan_defrag(request), line)
        if plan is not None and not plan.plan:
            # Where a node alone has no way, moves to others may be one.
            request, line = DefragRequest(model=model, across=True), f"{line} --across"
            plan = await self._try(self._operator.plan_defrag(request), line)
        if plan is None:
            return
        if not plan.plan:
            self.say(plan.why, title=line)
            return
        self._show_ghosts([Ghost(m.to_node, m.to_device, m.model, m.mb) for m in plan.moves])
        try:
            details = [headline_of_defrag(plan), *map(move_line, plan.moves)]
            details += map(restart_line, plan.restarts)
            agreed = await self._ask("Defragment?", details)
        finally:
            self._show_ghosts(())
        if agreed and (
            done := await self._try(
                self._operator.defrag(ApplyDefrag(request=request, plan=plan.plan)), line
            )
        ):
            self.say(headline_of_defrag(done), title=line)

    async def obey(self, command: Command, fleet: FleetSnapshot) -> None:
        """Do what a command that changes the fleet says."""
        name = command.argument
        match command.verb:
            case Verb.LOAD:
                await self.load([name], command.node, command.devices)
            case Verb.UNLOAD:
                await self.unload([name], fleet)
            case Verb.EVICT:
                await self.evict([name])
            case Verb.PIN | Verb.UNPIN:
                await self.pin([name], fleet, wanted=command.verb is Verb.PIN)
            case Verb.CORDON | Verb.UNCORDON:
                await self.cordon(name, fleet, wanted=command.verb is Verb.CORDON)
            case Verb.DEFRAG:
                await self.defrag(name or None)
            case Verb.CANCEL:
                await self.cancel(name)
            case _:
                await self.drain(name)

    async def _ask(self, question: str, details: Sequence[str]) -> bool:
        return await self._app.push_screen_wait(Confirm(question, details))

    async def _try(self, call: Awaitable[T], line: str) -> T | None:
        """The answer; a refusal is shown with its first hint."""
        try:
            return await call
        except CortexError as failed:
            hint = f"\n{failed.hints[0]}" if failed.hints else ""
            self.say(f"{failed.message}{hint}", title=line, severity="error")
            return None

    def say(
        self,
        text: str,
        *,
        title: str = "",
        severity: Literal["information", "warning", "error"] = "information",
    ) -> None:
        """A toast; its text comes from elsewhere, so it is no markup."""
        self._app.notify(text, title=title, severity=severity, timeout=_TOAST_S, markup=False)


def _disturbed(models: Sequence[ModelView], fleet: FleetSnapshot) -> list[str]:
    """The memory that the end of these models gives back, and who is waited for."""
    meant = {m.id for m in models}
    freed = [
        f"frees {format_mib(i.vram_used_mb)} on {i.node}: {i.model}"
        for i in fleet.instances()
        if i.model in meant and i.vram_used_mb
    ]
    active = sum(m.in_flight for m in models)
    return [*freed, f"{active} requests are under way; they are waited for."] if active else freed
