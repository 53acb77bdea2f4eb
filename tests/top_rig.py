"""`cortex top` over a source fed by the test and an operator that records calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from pydantic import BaseModel
from sample_fleet import sample_requests
from textual.pilot import Pilot
from typing_extensions import override

from cortex_cli.tui.app import Top
from cortex_cli.tui.operations import Operator
from cortex_cli.tui.options import ScreenOptions
from cortex_cli.tui.source import Source, Update
from cortex_common.errors import CortexError
from cortex_common.schema.fleet import ModelState
from cortex_common.schema.operation import Operation
from cortex_common.schema.operations import (
    EvictModelRequest,
    ModelResult,
    NodeRequest,
    NodeResult,
    PinView,
)
from cortex_common.schema.plans import (
    DefragRequest,
    DefragView,
    DrainPlan,
    MoveView,
    PlanLoadRequest,
    PlannedEviction,
    PlannedMove,
    PlanView,
)
from cortex_common.schema.requests import RequestList

Request = TypeVar("Request", bound=BaseModel)
Response = TypeVar("Response")


class FedSource(Source):
    """Yields the updates that a test feeds.

    Args:
        first: the first updates; an error ends the stream.
    """

    def __init__(self, *first: Update | CortexError) -> None:
        self._queue: asyncio.Queue[Update | CortexError] = asyncio.Queue()
        for update in first:
            self._queue.put_nowait(update)

    def feed(self, update: Update) -> None:
        """Add an update."""
        self._queue.put_nowait(update)

    @override
    async def follow(self) -> AsyncGenerator[Update, None]:
        while True:
            update = await self._queue.get()
            if isinstance(update, CortexError):
                raise update
            yield update


class RecordingOperator(Operator):
    """Records calls, and returns or raises what a test configures.

    Attributes:
        calls: names and requests of the operations that change the fleet, in order.
        planned: requests of load plans.
        logs: names whose log was read.
        error: raised by operations that change the fleet.
        eviction_error: raised by eviction plans.
        needs_cross_node: whether there are no moves within one node.
        plan: result of load plans, apart from the model.
        found: the requests in flight and finished.
    """

    def __init__(self, error: CortexError | None = None, plan: PlanView | None = None) -> None:
        self.calls: list[tuple[str, BaseModel]] = []
        self.planned: list[PlanLoadRequest] = []
        self.logs: list[str] = []
        self.error = error
        self.eviction_error: CortexError | None = None
        self.needs_cross_node = False
        self.found = sample_requests()
        self.plan = plan or PlanView(
            model="",
            action="load",
            node="beast",
            devices=(1,),
            device_mb=9_000,
            reason="most available memory",
        )

    @override
    async def run(self, operation: Operation[Request, Response], request: Request) -> Response:
        if operation.changes:
            self.calls.append((operation.name, request))
            if self.error is not None:
                raise self.error
        return operation.response.validate_python(self._result(operation, request))

    def _result(self, operation: Operation[Any, Any], request: Any) -> object:
        match operation.name:
            case "plan_load":
                self.planned.append(request)
                return self.plan.model_copy(update={"model": request.model})
            case "plan_evict":
                return self._eviction_plan(request)
            case "plan_drain":
                return _drain_plan(request)
            case "plan_defrag":
                return self._defrag_plan(request)
            case "load":
                return ModelResult(model=request.model, state=ModelState.LOADING)
            case _:
                return _RESULTS[operation.name](request)

    def _eviction_plan(self, request: EvictModelRequest) -> PlannedEviction:
        if self.eviction_error is not None:
            raise self.eviction_error
        return PlannedEviction(
            instance="qwen-1", model=request.model, node="beast", frees_mb=69_800, in_flight=3, idle_s=1.0
        )  # fmt: skip

    def _defrag_plan(self, request: DefragRequest) -> DefragView:
        if self.needs_cross_node and not request.cross_node:
            return DefragView(reason="no moves")
        move = MoveView(
            instance="gemma-1", model="google/gemma-3-12b", node="beast", device=0,
            to_node="beast", to_device=1, mb=12_000, load_s=8.0, in_flight=0,
        )  # fmt: skip
        return DefragView(
            plan="p1", node="beast", device=0, before_mb=105_800, after_mb=108_000,
            reason="one large block", moves=(move,),
        )  # fmt: skip

    @override
    async def requests(self, limit: int | None) -> RequestList:
        return self.found

    @override
    async def log(self, name: str) -> AsyncGenerator[str]:
        # A few lines, one of them in two chunks, then silence.
        self.logs.append(name)
        if self.error is not None:
            raise self.error
        yield "\x1b[32m INFO\x1b[0m loading weights\n WARN slow"
        yield " disk\n ERROR no such file\n"
        await asyncio.Event().wait()


def _drain_plan(request: NodeRequest) -> DrainPlan:
    move = PlannedMove(
        instance="gemma-1", model="google/gemma-3-12b", mb=12_000, in_flight=0, load_s=8.0,
        to_node="mule", to_devices=(1,), reason="least sufficient memory",
    )  # fmt: skip
    return DrainPlan(node=request.node, moves=(move,))


_RESULTS: dict[str, Callable[[Any], object]] = {
    "unload": lambda request: ModelResult(model=request.model, state=ModelState.UNLOADED),
    "evict": lambda request: ModelResult(model=request.model, state=ModelState.UNLOADED),
    "pin": lambda request: PinView(model=request.model),
    "unpin": lambda _request: (),
    "cordon": lambda request: NodeResult(node=request.node, cordoned=True),
    "uncordon": lambda request: NodeResult(node=request.node, cordoned=False),
    "drain": lambda request: NodeResult(node=request.node, cordoned=True),
    "defrag": lambda _request: DefragView(reason="done", done=True),
    "cancel": lambda _request: sample_requests().active[0],
}
"""Results of the operations that do not depend on the state of the operator, by name."""


def top(
    *first: Update | CortexError,
    operator: RecordingOperator | None = None,
    read_only: bool = False,
    ascii_only: bool = False,
    theme: str = "cortex-dark",
) -> Top:
    """Return the app over a source that yields `first`."""
    options = ScreenOptions(
        "http://gw:8000",
        interval_s=0.25,
        read_only=read_only,
        ascii_only=ascii_only,
        theme=theme,
    )
    return Top(FedSource(*first), operator or RecordingOperator(), options)


async def until(pilot: Pilot[None], condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Let the app run until a condition holds.

    Raises:
        TimeoutError: it did not within this time.
    """
    async with asyncio.timeout(seconds):
        while not condition():
            await pilot.pause()
            await asyncio.sleep(0.01)
