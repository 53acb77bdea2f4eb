"""What keys and commands do to the fleet: ask where it disturbs, call, and say which command does the same."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

from textual.app import App

from cortex_cli.tui.operator import Operator
from cortex_cli.tui.screens.dialogs import Confirm
from cortex_common.errors import CortexError
from cortex_common.fleet import FleetSnapshot
from cortex_common.operator import LoadModel, ModelAction, UnloadModel

_TOAST_S = 6.0


class Actions:
    """See the module.

    Args:
        app: where questions and answers are shown.
        operator: whom to ask.
    """

    def __init__(self, app: App[None], operator: Operator) -> None:
        self._app = app
        self._operator = operator

    async def load(
        self, models: Sequence[str], node: str | None = None, devices: tuple[int, ...] = ()
    ) -> None:
        """Have models loaded; what makes room for them is drained first, so nobody is asked."""
        where = "".join(f" --gpu {node}/{d}" for d in devices) or (
            f" --node {node}" if node else ""
        )
        for model in models:
            wish = LoadModel(model=model, node=node, devices=devices)
            await self._do(self._operator.load(wish), f"cortex models load {model}{where}")

    async def unload(self, models: Sequence[str], fleet: FleetSnapshot) -> None:
        """Unload models, after a question that tells what that disturbs."""
        active = sum(m.in_flight for m in fleet.models if m.id in models)
        details = [f"cortex models unload {' '.join(models)}"]
        if active:
            details.insert(0, f"{active} requests are under way; they are waited for.")
        if not await self._app.push_screen_wait(Confirm(f"Unload {', '.join(models)}?", details)):
            return
        for model in models:
            call = self._operator.unload(UnloadModel(model=model))
            await self._do(call, f"cortex models unload {model}")

    async def _do(self, call: Awaitable[ModelAction], line: str) -> None:
        try:
            done = await call
        except CortexError as failed:
            hint = f"\n{failed.hints[0]}" if failed.hints else ""
            self.say(f"{failed.message}{hint}", title=line, severity="error")
        else:
            self.say(f"{done.model} is {done.state.value}", title=line)

    def say(self, text: str, *, title: str = "", severity: Any = "information") -> None:
        """A toast; its text comes from elsewhere, so it is no markup."""
        self._app.notify(text, title=title, severity=severity, timeout=_TOAST_S, markup=False)
