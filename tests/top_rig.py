"""`cortex top` with a source that is fed by hand and an operator that writes down what it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from sample_fleet import sample_requests
from textual.pilot import Pilot

from cortex_cli.tui.app import Top
from cortex_cli.tui.options import Look
from cortex_cli.tui.source import Seen
from cortex_common.errors import CortexError
from cortex_common.schema.fleet import ModelState
from cortex_common.schema.operations import (
    DrainNode,
    EvictModel,
    LoadModel,
    ModelAction,
    NodeAction,
    PinModel,
    PinView,
    UnloadModel,
    UnpinModel,
)
from cortex_common.schema.plans import (
    ApplyDefrag,
    DefragRequest,
    DefragView,
    DrainPlan,
    MoveView,
    PlanLoad,
    PlannedEviction,
    PlannedMove,
    PlanView,
)
from cortex_common.schema.requests import RequestList, RequestView


class FedSource:
    """Tells what it is fed.

    Args:
        first: at once.
    """

    def __init__(self, *first: Seen | CortexError) -> None:
        self._queue: asyncio.Queue[Seen | CortexError] = asyncio.Queue()
        for seen in first:
            self._queue.put_nowait(seen)

    def feed(self, seen: Seen) -> None:
        """Tell this next."""
        self._queue.put_nowait(seen)

    async def follow(self) -> AsyncGenerator[Seen, None]:
        """See `Source.follow`."""
        while True:
            seen = await self._queue.get()
            if isinstance(seen, CortexError):
                raise seen
            yield seen


class NotingOperator:
    """Writes down calls, and answers or fails as told.

    Attributes:
        calls: in their order; plans are not among them, as they change nothing.
        asked: plans that were asked for.
        logs: models whose log was read.
        fails: raised by the next calls.
        refuses: raised by plans of evictions.
        apart: no node can be defragmented by itself.
        plan: what a plan says, but for the model.
        found: the requests.
    """

    def __init__(self, fails: CortexError | None = None, plan: PlanView | None = None) -> None:
        self.calls: list[object] = []
        self.asked: list[PlanLoad] = []
        self.logs: list[str] = []
        self.fails = fails
        self.refuses: CortexError | None = None
        self.apart = False
        self.found = sample_requests()
        self.plan = plan or PlanView(
            model="", action="load", node="beast", devices=(1,), device_mb=9_000, why="most room"
        )

    async def plan_load(self, request: PlanLoad) -> PlanView:
        """See `Operator.plan_load`."""
        self.asked.append(request)
        return self.plan.model_copy(update={"model": request.model})

    async def plan_evict(self, request: EvictModel) -> PlannedEviction:
        """See `Operator.plan_evict`."""
        if self.refuses is not None:
            raise self.refuses
        return PlannedEviction(
            instance="qwen-1", model=request.model, node="beast", frees_mb=69_800, in_flight=3, idle_s=1.0
        )  # fmt: skip

    async def plan_drain(self, node: str) -> DrainPlan:
        """See `Operator.plan_drain`."""
        move = PlannedMove(
            instance="gemma-1", model="google/gemma-3-12b", mb=12_000, in_flight=0, load_s=8.0,
            to_node="mule", to_devices=(1,), why="the tightest room",
        )  # fmt: skip
        return DrainPlan(node=node, moves=(move,))

    async def load(self, request: LoadModel) -> ModelAction:
        """See `Operator.load`."""
        return self._model(request, request.model, ModelState.LOADING)

    async def unload(self, request: UnloadModel) -> ModelAction:
        """See `Operator.unload`."""
        return self._model(request, request.model, ModelState.UNLOADED)

    async def evict(self, request: EvictModel) -> ModelAction:
        """See `Operator.evict`."""
        return self._model(request, request.model, ModelState.UNLOADED)

    async def pin(self, request: PinModel) -> PinView:
        """See `Operator.pin`."""
        self._note(request)
        return PinView(model=request.model)

    async def unpin(self, request: UnpinModel) -> tuple[PinView, ...]:
        """See `Operator.unpin`."""
        self._note(request)
        return ()

    async def cordon(self, node: str) -> NodeAction:
        """See `Operator.cordon`."""
        self._note(("cordon", node))
        return NodeAction(node=node, cordoned=True)

    async def uncordon(self, node: str) -> NodeAction:
        """See `Operator.uncordon`."""
        self._note(("uncordon", node))
        return NodeAction(node=node, cordoned=False)

    async def drain(self, request: DrainNode) -> NodeAction:
        """See `Operator.drain`."""
        self._note(request)
        return NodeAction(node=request.node, cordoned=True)

    async def plan_defrag(self, request: DefragRequest) -> DefragView:
        """See `Operator.plan_defrag`."""
        if self.apart and not request.across:
            return DefragView(why="no moves")
        move = MoveView(
            instance="gemma-1", model="google/gemma-3-12b", node="beast", device=0,
            to_node="beast", to_device=1, mb=12_000, load_s=8.0, in_flight=0,
        )  # fmt: skip
        return DefragView(
            plan="p1", node="beast", device=0, before_mb=105_800, after_mb=108_000,
            why="one large block", moves=(move,),
        )  # fmt: skip

    async def defrag(self, request: ApplyDefrag) -> DefragView:
        """See `Operator.defrag`."""
        self._note(request)
        return DefragView(why="done", done=True)

    async def requests(self, last: int | None) -> RequestList:
        """See `Operator.requests`."""
        return self.found

    async def cancel(self, request: str) -> RequestView:
        """See `Operator.cancel`."""
        self._note(("cancel", request))
        return sample_requests().active[0]

    async def log(self, model: str) -> AsyncGenerator[str]:
        """See `Operator.log`: a few lines, one of them in two pieces, then silence."""
        self.logs.append(model)
        if self.fails is not None:
            raise self.fails
        yield "\x1b[32m INFO\x1b[0m loading weights\n WARN slow"
        yield " disk\n ERROR no such file\n"
        await asyncio.Event().wait()

    def _model(self, request: object, model: str, state: ModelState) -> ModelAction:
        self._note(request)
        return ModelAction(model=model, state=state)

    def _note(self, request: object) -> None:
        self.calls.append(request)
        if self.fails is not None:
            raise self.fails


def top(
    *first: Seen | CortexError,
    operator: NotingOperator | None = None,
    read_only: bool = False,
    ascii_only: bool = False,
    theme: str = "cortex-dark",
) -> Top:
    """The app over a source that tells `first`."""
    look = Look(
        "http://gw:8000",
        interval_s=0.25,
        read_only=read_only,
        ascii_only=ascii_only,
        theme=theme,
    )
    return Top(FedSource(*first), operator or NotingOperator(), look)


async def until(pilot: Pilot[None], true: Callable[[], bool], seconds: float = 5.0) -> None:
    """Let the app work until something is true."""
    async with asyncio.timeout(seconds):
        while not true():
            await pilot.pause()
            await asyncio.sleep(0.01)
