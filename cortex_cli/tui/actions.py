"""Operations started from the screen: confirmation, the call, and the equivalent command as title of the result."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeVar

from rich.text import Text
from textual.app import App

from cortex_cli.color import Colors
from cortex_cli.render.defrag import headline as defrag_headline
from cortex_cli.render.defrag import move_line, restart_line
from cortex_cli.render.plan import drain_text, eviction_line, headline, plan_text
from cortex_cli.tui.bars import Ghost
from cortex_cli.tui.commands import Command
from cortex_cli.tui.operations import Operator
from cortex_cli.tui.screens.dialogs import Confirm, Page
from cortex_common.errors import CortexError
from cortex_common.schema import operations
from cortex_common.schema.fleet import FleetSnapshot, ModelView
from cortex_common.schema.operation import Operation
from cortex_common.schema.operations import (
    DrainNodeRequest,
    EvictModelRequest,
    LoadModelRequest,
    NodeRequest,
    PinModelRequest,
    UnloadModelRequest,
    UnpinModelRequest,
)
from cortex_common.schema.plans import ApplyDefragRequest, DefragRequest, PlanLoadRequest, PlanView
from cortex_common.units import format_duration, format_mib

T = TypeVar("T")

_TOAST_S = 6.0
_FEASIBLE = {"load", "join", "wait"}


def plan_ghosts(plans: Sequence[PlanView]) -> list[Ghost]:
    """Return the memory that plans would take, for the bars."""
    return [
        Ghost(plan.node, index, plan.model, plan.device_mb or 0)
        for plan in plans
        if plan.action == "load" and plan.node
        for index in plan.devices
    ]


class FleetActions:
    """Runs operations on behalf of the person at the screen.

    Args:
        app: shows questions and results.
        operator: the operator API.
        show_ghosts: draws planned memory while a question about it is open.
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

    async def run(self, command: Command, fleet: FleetSnapshot) -> None:
        """Run the operation of a command; one without a flow of its own here is confirmed and called."""
        name = command.argument
        match command.operation:
            case operations.LOAD:
                await self.load([name], command.node, command.devices)
            case operations.UNLOAD:
                await self.unload([name], fleet)
            case operations.EVICT:
                await self.evict([name])
            case operations.PIN:
                await self._pin(name)
            case operations.UNPIN:
                await self._unpin(name)
            case operations.DRAIN:
                await self.drain(name)
            case operations.DEFRAG:
                await self.defrag(name or None)
            case Operation() as operation:
                await self.confirm_and_run(operation, name)

    async def confirm_and_run(self, operation: Operation[Any, Any], name: str) -> None:
        """Run an operation whose request is only a name, after confirmation.

        Args:
            operation: the operation.
            name: name of its target.
        """
        line = f"{operation.command} {name}"
        if not await self._confirm(
            f"{operation.name.capitalize()} {name}?", [operation.description]
        ):
            return
        request = operation.request.model_validate({operation.target: name})
        if await self._try(self._operator.run(operation, request), line) is not None:
            self.notify(f"{name} {operation.past}", title=line)

    async def load(
        self, models: Sequence[str], node: str | None = None, devices: tuple[int, ...] = ()
    ) -> None:
        """Show the load plans and load after confirmation; show why a model can't be loaded."""
        plans = []
        for model in models:
            request = PlanLoadRequest(model=model, node=node, devices=devices)
            plan = await self._try(self._operator.run(operations.PLAN_LOAD, request), "plan")
            if plan is not None:
                plans.append(plan)
        for plan in plans:
            if plan.action == "serve":
                self.notify(headline(plan))
            elif plan.action not in _FEASIBLE:
                self._app.push_screen(Page(plan.model, Text(plan_text(plan, Colors()))))
        feasible = [plan for plan in plans if plan.action in _FEASIBLE]
        if not feasible or not await self._confirm_load(feasible):
            return
        await asyncio.gather(
            *(
                self._load(
                    LoadModelRequest(model=plan.model, node=node, devices=devices, wait=True)
                )
                for plan in feasible
            )
        )

    async def _load(self, request: LoadModelRequest) -> None:
        """Load a model and report the result; the table shows the progress."""
        options = "".join(f" --gpu {request.node}/{device}" for device in request.devices) or (
            f" --node {request.node}" if request.node else ""
        )
        line = f"{operations.LOAD.command} {request.model}{options}"
        if result := await self._try(self._operator.run(operations.LOAD, request), line):
            place = f" on {', '.join(result.nodes)}" if result.nodes else ""
            duration = f" after {format_duration(result.seconds)}" if result.seconds else ""
            self.notify(f"{result.model} is {result.state.value}{place}{duration}", title=line)

    async def _confirm_load(self, plans: Sequence[PlanView]) -> bool:
        details = []
        for plan in plans:
            each = " on each device" if len(plan.devices) > 1 else ""
            needs = f", {format_mib(plan.device_mb)}{each}" if plan.device_mb else ""
            details.append(headline(plan) + needs)
            details += [f"  {eviction_line(eviction)}" for eviction in plan.evictions]
        if len(plans) > 1:
            details.append("Each model is planned on its own; together they can end up elsewhere.")
        self._show_ghosts(plan_ghosts(plans))
        try:
            names = ", ".join(plan.model for plan in plans)
            return await self._confirm(f"Load {names}?", details)
        finally:
            self._show_ghosts(())

    async def unload(self, models: Sequence[str], fleet: FleetSnapshot) -> None:
        """Unload models after confirmation; the question shows the freed memory and the affected requests."""
        views = [view for name in models if (view := fleet.model(name))]
        if views and not any(view.instances or view.waiting for view in views):
            names = ", ".join(view.id for view in views)
            self.notify(f"{names}: not loaded", severity="warning")
            return
        details = [*_unload_effects(views, fleet), operations.UNLOAD.description]
        if not await self._confirm(f"Unload {', '.join(models)}?", details):
            return
        for model in models:
            line = f"{operations.UNLOAD.command} {model}"
            request = UnloadModelRequest(model=model)
            if result := await self._try(self._operator.run(operations.UNLOAD, request), line):
                self.notify(f"{result.model} is {result.state.value}", title=line)

    async def evict(self, models: Sequence[str]) -> None:
        """Evict one instance of each model after confirmation; refusals are shown before the question."""
        requests: dict[str, str] = {}
        for model in models:
            line = f"{operations.EVICT.command} {model}"
            request = EvictModelRequest(model=model)
            plan = await self._try(self._operator.run(operations.PLAN_EVICT, request), line)
            if plan is not None:
                requests[model] = eviction_line(plan)
        question = f"Evict one instance of {', '.join(requests)}?"
        details = [*requests.values(), operations.EVICT.description]
        if not requests or not await self._confirm(question, details):
            return
        for model in requests:
            line = f"{operations.EVICT.command} {model}"
            request = EvictModelRequest(model=model)
            if result := await self._try(self._operator.run(operations.EVICT, request), line):
                self.notify(f"{result.model} is {result.state.value}", title=line)

    async def toggle_pin(self, models: Sequence[str], fleet: FleetSnapshot) -> None:
        """Pin unpinned models and unpin pinned ones, without confirmation because no request is affected."""
        pinned = {instance.model for instance in fleet.instances() if instance.pinned}
        for model in models:
            await (self._unpin(model) if model in pinned else self._pin(model))

    async def _pin(self, model: str) -> None:
        line = f"{operations.PIN.command} {model}"
        request = PinModelRequest(model=model)
        if result := await self._try(self._operator.run(operations.PIN, request), line):
            self.notify(f"{result.model} is pinned", title=line)

    async def _unpin(self, model: str) -> None:
        line = f"{operations.UNPIN.command} {model}"
        request = UnpinModelRequest(model=model)
        remaining = await self._try(self._operator.run(operations.UNPIN, request), line)
        if remaining is not None:
            suffix = "; other pins of it remain" if remaining else ""
            self.notify(f"{model} unpinned{suffix}", title=line)

    async def toggle_cordon(self, node: str, fleet: FleetSnapshot) -> None:
        """Cordon a node, or uncordon it if it is cordoned, after confirmation."""
        view = fleet.node(node)
        cordoned = view is not None and view.cordoned
        await self.confirm_and_run(operations.UNCORDON if cordoned else operations.CORDON, node)

    async def drain(self, node: str) -> None:
        """Drain a node after confirmation."""
        line = f"{operations.DRAIN.command} {node}"
        plan = await self._try(
            self._operator.run(operations.PLAN_DRAIN, NodeRequest(node=node)), line
        )
        if plan is None:
            return
        details = [drain_text(plan), "The node is cordoned: no new instances are placed on it."]
        if not await self._confirm(f"Drain {node}?", details):
            return
        request = DrainNodeRequest(node=node)
        if result := await self._try(self._operator.run(operations.DRAIN, request), line):
            counts = (
                ("moved", result.moved),
                ("unloaded", result.unloaded),
                ("kept", result.kept),
            )
            self.notify(", ".join(f"{word} {len(models)}" for word, models in counts), title=line)

    async def defrag(self, model: str | None = None) -> None:
        """Show the moves that consolidate free memory and make them after confirmation."""
        line = operations.DEFRAG.command + (f" --for {model}" if model else "")
        request = DefragRequest(model=model)
        plan = await self._try(self._operator.run(operations.PLAN_DEFRAG, request), line)
        if plan is not None and not plan.plan:
            # Without a solution within one node, try moves between nodes.
            request, line = DefragRequest(model=model, cross_node=True), f"{line} --cross-node"
            plan = await self._try(self._operator.run(operations.PLAN_DEFRAG, request), line)
        if plan is None:
            return
        if not plan.plan:
            self.notify(plan.reason, title=line)
            return
        self._show_ghosts([Ghost(m.to_node, m.to_device, m.model, m.mb) for m in plan.moves])
        try:
            details = [defrag_headline(plan), *map(move_line, plan.moves)]
            details += map(restart_line, plan.restarts)
            confirmed = await self._confirm("Defragment?", details)
        finally:
            self._show_ghosts(())
        if not confirmed:
            return
        apply = ApplyDefragRequest(request=request, plan=plan.plan)
        if result := await self._try(self._operator.run(operations.DEFRAG, apply), line):
            self.notify(defrag_headline(result), title=line)

    async def _confirm(self, question: str, details: Sequence[str]) -> bool:
        return await self._app.push_screen_wait(Confirm(question, details))

    async def _try(self, call: Awaitable[T], line: str) -> T | None:
        """Return the result of a call, or None after showing its error with the first hint."""
        try:
            return await call
        except CortexError as error:
            hint = f"\n{error.hints[0]}" if error.hints else ""
            self.notify(f"{error.message}{hint}", title=line, severity="error")
            return None

    def notify(
        self,
        text: str,
        *,
        title: str = "",
        severity: Literal["information", "warning", "error"] = "information",
    ) -> None:
        """Show a toast. Its text can come from other hosts, so it is not parsed as markup."""
        self._app.notify(text, title=title, severity=severity, timeout=_TOAST_S, markup=False)


def _unload_effects(models: Sequence[ModelView], fleet: FleetSnapshot) -> list[str]:
    """Return the memory that unloading frees, and the requests that it waits for."""
    ids = {model.id for model in models}
    freed = [
        f"frees {format_mib(instance.vram_used_mb)} on {instance.node}: {instance.model}"
        for instance in fleet.instances()
        if instance.model in ids and instance.vram_used_mb
    ]
    in_flight = sum(model.in_flight for model in models)
    return [*freed, f"{in_flight} requests in flight will finish first."] if in_flight else freed
