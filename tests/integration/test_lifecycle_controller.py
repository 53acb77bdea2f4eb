"""The controller with a real neuron and the embedded engine, on a RAM device that holds two of three models."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from lifecycle_kit import MODEL_MB, Neuron, Served, gateway, neuron, tiny, until

from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import DoesNotFit, ModelNotFound, NotFound
from cortex_common.schema.fleet import ModelState
from cortex_common.schema.instances import InstanceState
from cortex_common.schema.operations import LoadModelRequest, UnloadModelRequest
from cortex_server.fleet.state import Fleet

EAGER = {"placement": {"drain_after": 0.2}, "eviction": {"drain_timeout": 20, "min_residency": 0}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelConfig, ...]:
    """Return three models of which two fit at a time, one that never fits, and one whose file is missing."""
    directory = tmp_path_factory.mktemp("models")
    return (
        *(tiny(directory, name) for name in ("ada", "bob", "cleo")),
        tiny(directory, "huge", vram_mb=9999),
        tiny(directory, "broken", file="missing.gguf"),
    )


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Neuron]:
    """Provide a node for two of the models."""
    async with neuron(tmp_path, 2 * MODEL_MB + 8) as running:
        yield running


@pytest.fixture
async def served(node: Neuron, models: tuple[ModelConfig, ...]) -> AsyncIterator[Served]:
    """Provide a gateway for the node that evicts without waiting."""
    async with gateway({"here": node.url}, models, **EAGER) as running:
        yield running


async def test_three_models_take_turns_on_a_device_for_two(served: Served, node: Neuron) -> None:
    """Round-robin requests evict and load without an error, and the ledger never reserves more memory than exists."""
    cold: list[bool] = []
    for name in ("ada", "bob", "ada", "cleo", "ada", "bob"):
        answer = await served.chat(name)
        assert answer.status_code == 200, answer.text
        cold.append(answer.headers.get("x-cortex-cold-start") == "true")
        held = sum(
            sum(i.vram_by_device) for i in node.runtime.models(lambda _: "http://127.0.0.1:1")
        )
        assert held <= 2 * MODEL_MB + 8
    assert cold == [True, True, False, True, False, True]


async def test_concurrent_requests_cause_one_load(served: Served) -> None:
    """Twenty concurrent requests for a model that is not loaded start one instance, and all succeed."""
    answers = await asyncio.gather(*(served.chat("ada") for _ in range(20)))
    assert [a.status_code for a in answers] == [200] * 20
    snapshot = await served.operator.fleet()
    assert len(snapshot.instances()) == 1
    assert served.gateway.controller.waiting_requests(snapshot.models[0].id) == 0


async def test_a_model_that_never_fits_is_an_immediate_error(served: Served) -> None:
    """A model larger than the device is refused immediately with the memory of each device."""
    async with asyncio.timeout(5):
        answer = await served.chat("huge")
    assert answer.status_code == 507
    error = answer.json()["error"]
    assert error["code"] == "does_not_fit"
    assert error["refusals"][0]["node"] == "here"
    assert error["refusals"][0]["missing_mb"] == 9999 - (2 * MODEL_MB + 8)


async def test_weights_that_are_not_there_fail_with_the_reason(served: Served) -> None:
    """If the node refuses a load because of its files, the client gets the reason."""
    answer = await served.chat("broken")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "load_failed"
    assert "missing.gguf" in answer.json()["error"]["message"]
    assert "logs" not in str(answer.json()), "no engine was started that could have written one"
    shown = (await served.operator.fleet()).model("broken")
    assert shown is not None
    assert (shown.state, "missing.gguf" in str(shown.error)) == ("failed", True)


async def test_an_operator_need_not_wait_until_a_failed_load_is_tried_again(
    served: Served, models: tuple[ModelConfig, ...]
) -> None:
    """After a failed load, requests are refused without another load; an operator's load starts one."""
    weights = models[0].source or ""
    shutil.move(weights, f"{weights}.elsewhere")
    try:
        assert (await served.chat("ada")).status_code == 503
    finally:
        shutil.move(f"{weights}.elsewhere", weights)
    assert (await served.chat("ada")).status_code == 503
    done = await served.operator.load(LoadModelRequest(model="ada", wait=True, timeout_s=30))
    assert done.state is ModelState.READY


async def test_an_operator_loads_and_unloads(served: Served) -> None:
    """`load` with `wait` returns when the model is ready, `unload` when its memory is free."""
    await until(lambda: served.gateway.fleet.snapshot.nodes[0].state == "up")
    done = await served.operator.load(LoadModelRequest(model="ada", wait=True, timeout_s=30))
    assert done.state is ModelState.READY
    assert done.nodes == ("here",)
    assert done.seconds
    gone = await served.operator.unload(UnloadModelRequest(model="ada"))
    assert gone.state is ModelState.UNLOADED
    await until(lambda: not served.gateway.fleet.snapshot.instances())
    with pytest.raises(NotFound):
        await served.operator.unload(UnloadModelRequest(model="ada"))


async def test_a_load_without_wait_returns_what_is_known(served: Served) -> None:
    """`load` without `wait` returns "loading", or an error that is known before the load."""
    await until(lambda: served.gateway.fleet.snapshot.nodes[0].state == "up")
    assert (await served.operator.load(LoadModelRequest(model="ada"))).state is ModelState.LOADING
    with pytest.raises(DoesNotFit):
        await served.operator.load(LoadModelRequest(model="huge"))
    with pytest.raises(ModelNotFound):
        await served.operator.load(LoadModelRequest(model="adda"))
    await until(
        lambda: any(
            i.state is InstanceState.READY for i in served.gateway.fleet.snapshot.instances()
        )
    )


async def test_a_client_that_disconnects_while_waiting_leaves_nothing(served: Served) -> None:
    """Cancelled waits leave no waiter behind, and their load is cancelled."""
    tasks = [asyncio.create_task(served.chat("ada")) for _ in range(10)]
    controller = served.gateway.controller
    await until(
        lambda: controller.waiting_requests(served.gateway.fleet.snapshot.models[0].id) == 10
    )
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await until(
        lambda: controller.waiting_requests(served.gateway.fleet.snapshot.models[0].id) == 0
    )
    await until(lambda: controller.progress("ada") is None)


async def test_a_stream_is_never_cut_by_an_eviction(served: Served) -> None:
    """A request that needs memory of busy instances waits until their streams are complete."""
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 400,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    assert (await served.chat("ada")).status_code == 200
    assert (await served.chat("bob")).status_code == 200

    async def stream(model: str) -> bytes:
        answer = await served.http.post("/v1/chat/completions", json=body | {"model": model})
        return answer.content

    streams = [asyncio.create_task(stream(m)) for m in ("ada", "bob") * 3]
    await until(lambda: sum(i.in_flight for i in served.gateway.fleet.snapshot.instances()) > 0)
    answer = await served.chat("cleo")
    assert answer.status_code == 200
    for content in await asyncio.gather(*streams):
        assert content.rstrip().endswith(b"data: [DONE]")
        assert b'"usage"' in content
        assert b'"error"' not in content


async def test_two_gateways_share_a_neuron(node: Neuron, models: tuple[ModelConfig, ...]) -> None:
    """Two gateways that request all three models get every response, and the node is never overcommitted."""
    async with (
        gateway({"here": node.url}, models, **EAGER) as one,
        gateway({"here": node.url}, models, **EAGER) as two,
    ):
        most = 0

        def look() -> bool:
            nonlocal most
            held = sum(
                sum(i.vram_by_device) for i in node.runtime.models(lambda _: "http://127.0.0.1:1")
            )
            most = max(most, held)
            return all(task.done() for task in tasks)

        tasks = [
            asyncio.create_task(side.chat(name))
            for _ in range(3)
            for name in ("ada", "bob", "cleo")
            for side in (one, two)
        ]
        await until(look, 60)
        assert [
            (t.result().status_code, t.result().text[:200])
            for t in tasks
            if t.result().status_code != 200
        ] == []
        assert most <= 2 * MODEL_MB + 8
        for side in (one, two):  # the node reports the other gateway's requests once a second

            def idle(fleet: Fleet = side.gateway.fleet) -> bool:
                return all(i.in_flight == 0 for i in fleet.snapshot.instances())

            await until(idle)


async def test_a_queue_timeout_reports_the_progress_of_the_load(
    node: Neuron, models: tuple[ModelConfig, ...]
) -> None:
    """A request that times out while waiting gets 503 with the state and node of the load, and Retry-After."""
    hasty = EAGER | {"gateway": {"metrics_listen": None, "cold_start_timeout_s": 0.05}}
    async with gateway({"here": node.url}, models, **hasty) as served:
        await until(lambda: served.gateway.fleet.snapshot.nodes[0].state == "up")
        answer = await served.chat("ada")
        assert answer.status_code == 503
        error = answer.json()["error"]
        assert error["code"] == "model_loading"
        assert error["loading"]["node"] == "here"
        assert error["loading"]["state"] in {"starting", "loading"}
        assert error["loading"]["position"] == 1
        assert int(answer.headers["retry-after"]) >= 1
        await until(lambda: served.gateway.controller.progress("ada") is None)
        assert (await served.chat("ada")).status_code == 200
