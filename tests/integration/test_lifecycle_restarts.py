"""Restarts of an attached engine by a gateway, with a real neuron and the fake mistral.rs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from engines.attached_rig import Attached
from lifecycle_kit import Served, gateway, until

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.instances import InstanceState
from cortex_common.schema.operations import LoadModelRequest, PinModelRequest, UnloadModelRequest
from cortex_common.schema.plans import ApplyDefragRequest, DefragRequest

AFTER = 3


@pytest.fixture
def attached(tmp_path: Path) -> Iterator[Attached]:
    """Provide the engine with org/a and org/b loaded, and its neuron."""
    found = Attached(tmp_path)
    try:
        found.start_engine()
        found.rig.start()
        yield found
    finally:
        found.close()


def model_config(model: str) -> ModelConfig:
    """Return the instance of a model of that engine."""
    return ModelConfig.model_validate({"id": model, "harness": "shared", "vram_mb": 100})


def ready(served: Served) -> set[str]:
    """Return the models with a ready instance."""
    views = served.gateway.fleet.snapshot.instances()
    return {i.model for i in views if i.state is InstanceState.READY}


def restarts(served: Served) -> int:
    """Return the number of restarts by the gateway."""
    return served.gateway.metrics.counters.restarts["beast", "shared", "restarted"]


def whole(answer: httpx.Response) -> bool:
    """Return whether a stream is complete."""
    return answer.content.rstrip().endswith(b"data: [DONE]") and b'"error"' not in answer.content


async def test_an_engine_is_drained_restarted_and_holds_what_it_held(attached: Attached) -> None:
    """A planned restart cuts no stream and makes requests wait; at twice the cycles it happens without an operator."""
    models = (model_config("org/a"), model_config("org/b"))
    sections = {"eviction": {"defrag_after_cycles": AFTER}}
    async with gateway({"beast": attached.rig.url}, models, **sections) as served:
        await until(lambda: ready(served) == {"org/a", "org/b"})
        operator = served.operator
        assert (await operator.plan_defrag(DefragRequest())).restarts == ()
        await operator.pin(PinModelRequest(model="org/a"))
        await operator.unload(UnloadModelRequest(model="org/b"))
        await operator.load(LoadModelRequest(model="org/b", wait=True))
        await operator.unload(UnloadModelRequest(model="org/b"))

        def cycles() -> int:
            return served.gateway.fleet.snapshot.nodes[0].engines[0].cycles

        await until(lambda: cycles() == AFTER and ready(served) == {"org/a"})
        plan = await operator.plan_defrag(DefragRequest())
        assert [(r.harness, r.models, r.chosen) for r in plan.restarts] == [
            ("shared", ("org/a",), True)
        ]
        assert (
            await operator.plan_defrag(DefragRequest(node="beast", max_seconds=0.01))
        ).plan == ""

        long = asyncio.create_task(served.chat("org/a", stream=True, max_tokens=100))
        await until(lambda: any(i.in_flight for i in served.gateway.fleet.snapshot.instances()))
        doing = asyncio.create_task(operator.defrag(ApplyDefragRequest(plan=plan.plan)))
        await until(lambda: not served.gateway.fleet.ready("org/a"))
        during = asyncio.create_task(served.chat("org/a", stream=True))
        assert whole(await long)
        assert (await doing).done
        assert whole(await during)
        assert during.result().headers["x-cortex-cold-start"] == "true"
        assert attached.calls.read_text().count(" restart ") == restarts(served) == 1
        assert ready(served) == {"org/a"}
        await until(lambda: cycles() == 1)

        await operator.load(LoadModelRequest(model="org/b", wait=True))
        config = served.gateway.config
        eager = config.eviction.model_copy(update={"defrag_after_cycles": 1})
        served.gateway.controller.use_config(config.model_copy(update={"eviction": eager}))
        await until(lambda: restarts(served) == 2)
        assert ready(served) == {"org/a", "org/b"}
