"""Operator operations, reconciliation and persistence, with a real neuron and the embedded engine."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest
from lifecycle_kit import MODEL_MB, Neuron, Served, gateway, neuron, tiny, until

from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import Conflict, InstanceBusy, NodeNotFound, NotFound, Unavailable
from cortex_common.schema.fleet import InstanceView, ModelState
from cortex_common.schema.instances import InstanceState
from cortex_common.schema.operations import (
    DrainNodeRequest,
    EvictModelRequest,
    LoadModelRequest,
    NodeRequest,
    PinModelRequest,
    UnloadModelRequest,
    UnpinModelRequest,
)
from cortex_common.schema.plans import (
    ApplyDefragRequest,
    DefragRequest,
    DefragView,
    PlanLoadRequest,
)

EAGER = {"placement": {"drain_after": 0.2}, "eviction": {"min_residency": 0}}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a directory for tiny models."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Neuron]:
    """Provide a node for one model."""
    async with neuron(tmp_path, MODEL_MB + 8) as running:
        yield running


@pytest.fixture
async def served(node: Neuron, weights: Path) -> AsyncIterator[Served]:
    """Provide a gateway with two models for the node."""
    models = (tiny(weights, "ada"), tiny(weights, "bob"))
    async with gateway({"here": node.url}, models, **EAGER) as running:
        await until(lambda: running.gateway.fleet.snapshot.nodes[0].state == "up")
        yield running


def ready(served: Served) -> list[InstanceView]:
    """Return the ready instances in the gateway's snapshot."""
    views = served.gateway.fleet.snapshot.instances()
    return [i for i in views if i.state is InstanceState.READY]


async def test_a_pin_protects_until_it_is_taken_off(served: Served) -> None:
    """A pinned model is not evicted, by another model or by an operator, until it is unpinned."""
    await served.operator.load(LoadModelRequest(model="ada", wait=True, pin=True))
    assert (await served.chat("bob")).status_code == 507
    with pytest.raises(Conflict):
        await served.operator.evict(EvictModelRequest(model="ada"))
    shown = (await served.operator.fleet()).instances()
    assert [i.pinned for i in shown] == [True]
    assert await served.operator.unpin(UnpinModelRequest(model="ada")) == ()
    assert (await served.chat("bob")).status_code == 200
    with pytest.raises(NotFound):
        await served.operator.unpin(UnpinModelRequest(model="ada"))


async def test_a_pin_for_a_time_ends_by_itself(served: Served) -> None:
    """A pin with an expiry is removed when it expires."""
    await served.operator.load(LoadModelRequest(model="ada", wait=True))
    pin = await served.operator.pin(PinModelRequest(model="ada", node="here", for_s=0.5))
    assert pin.until is not None
    entry = next(e for e in served.gateway.audit_log.since(0) if e.event == "pinned")
    assert datetime.fromisoformat(entry.fields["until"]).timestamp() == int(pin.until)
    await until(lambda: not served.gateway.controller.directives.pins.active)
    assert (await served.chat("bob")).status_code == 200


async def test_an_evicted_instance_may_come_back(served: Served) -> None:
    """`evict` stops one instance; the next request loads the model again."""
    assert (await served.chat("ada")).status_code == 200
    done = await served.operator.evict(EvictModelRequest(model="ada"))
    assert done.state is ModelState.UNLOADED
    await until(lambda: not ready(served))
    answer = await served.chat("ada")
    assert answer.status_code == 200
    assert answer.headers["x-cortex-cold-start"] == "true"


async def test_a_plan_is_what_then_happens(served: Served) -> None:
    """The plan lists the eviction with its sizes and changes nothing; the load then carries it out."""
    plan = await served.operator.plan_load(PlanLoadRequest(model="ada"))
    assert (plan.action, plan.node, plan.evictions) == ("load", "here", ())
    assert plan.ledger[0].chosen
    assert (await served.chat("ada")).status_code == 200
    plan = await served.operator.plan_load(PlanLoadRequest(model="bob"))
    assert plan.action == "load"
    assert [e.model for e in plan.evictions] == ["ada"]
    assert plan.device_mb == MODEL_MB
    assert [i.model for i in ready(served)] == ["ada"]
    assert (await served.chat("bob")).status_code == 200
    await until(lambda: [i.model for i in ready(served)] == ["bob"])
    assert (await served.operator.plan_load(PlanLoadRequest(model="bob"))).action == "serve"


async def test_a_mistyped_node_gets_a_suggestion(served: Served) -> None:
    """Every operation on a node rejects an unknown node and suggests a similar name."""
    await served.operator.load(LoadModelRequest(model="ada", wait=True))
    for asked in (
        served.operator.plan_load(PlanLoadRequest(model="ada", node="her")),
        served.operator.evict(EvictModelRequest(model="ada", node="her")),
        served.operator.pin(PinModelRequest(model="ada", node="her")),
        served.operator.plan_defrag(DefragRequest(node="her")),
        served.operator.cordon(NodeRequest(node="her")),
    ):
        with pytest.raises(NodeNotFound) as raised:
            await asked
        assert raised.value.hints == ("did you mean 'here'?",)


async def test_a_cordoned_node_accepts_no_loads(served: Served) -> None:
    """A cordoned node keeps serving its instances and loads nothing else until it is uncordoned."""
    assert (await served.chat("ada")).status_code == 200
    await served.operator.cordon(NodeRequest(node="here"))
    assert (await served.chat("ada")).status_code == 200
    refused = await served.chat("bob")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
    error = refused.json()["error"]
    assert error["message"] == "model 'bob' fits only on nodes that are cordoned: here"
    assert error["hints"][0] == "cortex nodes uncordon here"
    assert error["refusals"][0]["reason"] == "the node is cordoned"
    assert (
        "only on nodes that are cordoned: here"
        in (await served.operator.plan_load(PlanLoadRequest(model="bob"))).reason
    )
    await served.operator.uncordon(NodeRequest(node="here"))
    assert (await served.chat("bob")).status_code == 200


async def test_a_drained_node_hands_its_models_over(tmp_path: Path, weights: Path) -> None:
    """Draining a node loads a copy on another node before it stops the original; no request fails."""
    models = (tiny(weights, "ada"),)
    async with (
        neuron(tmp_path / "one", MODEL_MB + 8, ports=(18200, 18249)) as one,
        neuron(tmp_path / "two", MODEL_MB + 8, ports=(18250, 18299)) as two,
        gateway({"one": one.url, "two": two.url}, models, **EAGER) as served,
    ):
        done = await served.operator.load(LoadModelRequest(model="ada", node="two", wait=True))
        assert done.nodes == ("two",)
        draining = asyncio.create_task(served.operator.drain(DrainNodeRequest(node="two")))
        while not draining.done():
            assert (await served.chat("ada")).status_code == 200
        action = await draining
        assert action.moved == ("ada",)
        assert [i.node for i in ready(served)] == ["one"]


async def test_a_drain_ends_with_the_cordon(tmp_path: Path, weights: Path) -> None:
    """Uncordoning a node during its drain keeps the instances that are still there."""
    models = (tiny(weights, "ada"), tiny(weights, "bob"))
    async with (
        neuron(tmp_path / "one", 2 * MODEL_MB + 8, ports=(18300, 18349)) as one,
        neuron(tmp_path / "two", 2 * MODEL_MB + 8, ports=(18350, 18399)) as two,
        gateway({"one": one.url, "two": two.url}, models, **EAGER) as served,
    ):
        for model in ("ada", "bob"):
            await served.operator.load(LoadModelRequest(model=model, node="two", wait=True))
        draining = asyncio.create_task(served.operator.drain(DrainNodeRequest(node="two")))
        copying = "load_started", "one"
        await until(
            lambda: any(
                (e.event, e.fields.get("node")) == copying
                for e in served.gateway.audit_log.since(0)
            )
        )
        await served.operator.uncordon(NodeRequest(node="two"))
        assert sorted((await draining).kept) == ["ada", "bob"]
        assert sorted(i.model for i in ready(served) if i.node == "two") == ["ada", "bob"]


async def test_the_plan_of_a_drain_is_what_it_does(tmp_path: Path, weights: Path) -> None:
    """If one of two models fits elsewhere, the plan moves it and unloads the other, and the drain does the same."""
    models = tuple(tiny(weights, name) for name in ("ada", "bob"))
    async with (
        neuron(tmp_path / "a", 2 * MODEL_MB + 8, ports=(18300, 18349)) as a,
        neuron(tmp_path / "b", MODEL_MB + 8, ports=(18350, 18399)) as b,
        gateway({"a": a.url, "b": b.url}, models, **EAGER) as served,
    ):
        for name in ("ada", "bob"):
            await served.operator.load(LoadModelRequest(model=name, node="a", wait=True))
        plan = await served.operator.plan_drain(NodeRequest(node="a"))
        assert sorted(str(m.to_node) for m in plan.moves) == ["None", "b"]
        candidate = await served.operator.plan_evict(EvictModelRequest(model="ada"))
        assert candidate.instance in {m.instance for m in plan.moves}
        assert len(ready(served)) == 2
        done = await served.operator.drain(DrainNodeRequest(node="a"))
        assert done.moved == tuple(m.model for m in plan.moves if m.to_node == "b")
        assert done.unloaded == tuple(m.model for m in plan.moves if m.to_node is None)


async def test_a_load_may_say_how_long_the_model_stays(served: Served) -> None:
    """A model loaded with a TTL is unloaded after that idle time, although its config says never."""
    await served.operator.load(LoadModelRequest(model="ada", wait=True, ttl_s=0.5))
    await until(lambda: ready(served) == [])


async def test_idle_models_go_and_wanted_ones_come(node: Neuron, weights: Path) -> None:
    """A preloaded model is loaded without a request, and unloaded after its TTL."""
    models = (tiny(weights, "ada", preload=True, ttl="1s"),)
    async with gateway({"here": node.url}, models, **EAGER) as served:
        await until(lambda: len(ready(served)) == 1)
        shown = await served.operator.fleet()
        assert shown.instances()[0].reason == "least sufficient memory"
        assert shown.models[0].unload_at is not None
        assert shown.models[0].unload_at - shown.at <= 1.0
        await until(lambda: not served.gateway.fleet.snapshot.instances())


async def test_missing_replicas_are_loaded(tmp_path: Path, weights: Path) -> None:
    """A model with replicas.min stays loaded, also after an instance is evicted."""
    models = (tiny(weights, "ada", replicas={"min": 2, "max": 2}),)
    async with (
        neuron(tmp_path, 2 * MODEL_MB + 8) as node,
        gateway({"here": node.url}, models, **EAGER) as served,
    ):
        await until(lambda: len(ready(served)) == 2)
        await served.operator.evict(EvictModelRequest(model="ada"))
        await until(lambda: len(ready(served)) == 2)


async def test_an_unload_holds_until_the_next_request(node: Neuron, weights: Path) -> None:
    """After an operator unloads a model, replicas.min does not load it again."""
    models = (tiny(weights, "ada", replicas={"min": 1, "max": 1}),)
    async with gateway({"here": node.url}, models, **EAGER) as served:
        await until(lambda: len(ready(served)) == 1)
        await served.operator.unload(UnloadModelRequest(model="ada"))
        desired_state, shown = (
            served.gateway.controller.desired_state,
            await served.operator.fleet(),
        )
        assert not shown.instances()
        assert not desired_state.actions(shown, models, 0.0).load
        await served.operator.load(LoadModelRequest(model="ada", wait=True))
        await served.operator.evict(EvictModelRequest(model="ada"))
        await until(lambda: len(ready(served)) == 1)


async def test_an_unload_holds_though_another_at_once_fails(node: Neuron, weights: Path) -> None:
    """A request with a short queue timeout gets an error and does not affect the requests that keep waiting."""
    models = (tiny(weights, "ada", replicas={"min": 1, "max": 1}),)
    async with gateway({"here": node.url}, models, **EAGER) as served:
        await until(lambda: len(ready(served)) == 1)
        fleet = served.gateway.fleet
        ((endpoint, _),) = fleet.endpoints
        fleet.begin_request(endpoint)
        patient = asyncio.create_task(served.operator.unload(UnloadModelRequest(model="ada")))
        await until(lambda: endpoint.draining)
        for hasty in (
            served.operator.unload(UnloadModelRequest(model="ada", drain_timeout_s=0.0)),
            served.operator.evict(EvictModelRequest(model="ada", drain_timeout_s=0.0)),
        ):
            with pytest.raises(InstanceBusy):
                await hasty
        assert endpoint.draining
        fleet.end_request(endpoint)
        await patient
        assert "ada" in served.gateway.controller.desired_state.unloaded_models


async def test_what_loads_took_and_operators_set_outlasts_the_gateway(
    node: Neuron, tmp_path: Path, weights: Path
) -> None:
    """Measured size and seconds are shown beside the estimate; a restarted gateway keeps them, pins and cordons."""
    models = (tiny(weights, "ada"),)
    state = {"gateway": {"metrics_listen": None, "state_dir": str(tmp_path / "gateway")}}
    async with gateway({"here": node.url}, models, **(EAGER | state)) as served:
        assert (await served.operator.model("ada")).measured == ()
        await served.operator.load(LoadModelRequest(model="ada", wait=True))
        await served.operator.pin(PinModelRequest(model="ada"))
        await served.operator.cordon(NodeRequest(node="here"))
        await until(lambda: bool(served.gateway.controller.measurements.for_model("ada")))
        detail = await served.operator.model("ada")
        assert detail.vram_mb == MODEL_MB
        assert detail.measured[0].loads == 1
        assert detail.load_s
    async with gateway({"here": node.url}, models, **(EAGER | state)) as served:
        again = await served.operator.model("ada")
        assert again.measured[0].load_s == detail.measured[0].load_s
        assert [p.model for p in again.pins] == ["ada"]
        assert [n.cordoned for n in (await served.operator.fleet()).nodes] == [True]


async def test_defrag_moves_by_copies_and_refuses_an_old_plan(
    tmp_path: Path, weights: Path
) -> None:
    """A defrag plan is carried out without an interruption; a plan for another state is rejected."""
    models = (tiny(weights, "ada"), tiny(weights, "bob"))
    capacity = 2 * MODEL_MB + 8
    async with (
        neuron(tmp_path / "one", capacity, ports=(18200, 18249)) as one,
        neuron(tmp_path / "two", capacity, ports=(18250, 18299)) as two,
        gateway({"one": one.url, "two": two.url}, models, **EAGER) as served,
    ):
        await served.operator.load(LoadModelRequest(model="ada", node="one", wait=True))
        await served.operator.load(LoadModelRequest(model="bob", node="two", wait=True))
        request = DefragRequest(cross_node=True)
        plan = await served.operator.plan_defrag(request)
        assert len(plan.moves) == 1
        assert plan.after_mb >= plan.before_mb + MODEL_MB
        with pytest.raises(Conflict):
            await served.operator.defrag(ApplyDefragRequest(request=request, plan="0123456789ab"))

        async def as_shown() -> DefragView:
            while True:  # a new measurement of the node in between makes the plan outdated
                shown = await served.operator.plan_defrag(request)
                with contextlib.suppress(Conflict):
                    return await served.operator.defrag(
                        ApplyDefragRequest(request=request, plan=shown.plan)
                    )

        moving = asyncio.create_task(as_shown())
        while not moving.done():
            for model in ("ada", "bob"):
                assert (await served.chat(model)).status_code == 200
        assert (await moving).done
        await until(lambda: len({i.node for i in ready(served)}) == 1)
        assert sorted(i.model for i in ready(served)) == ["ada", "bob"]
        assert (await served.operator.plan_defrag(request)).moves == ()


async def test_a_cordon_that_cannot_be_saved_holds_and_is_reported(tmp_path: Path) -> None:
    """If the disk is full, cordon and pin report that a restart will lose the change."""
    sections = {"gateway": {"metrics_listen": None, "state_dir": str(tmp_path)}}
    models = (ModelConfig(id="ada", harness="fake"),)
    async with gateway({"here": "http://127.0.0.1:1"}, models, **sections) as served:
        with contextlib.closing(sqlite3.connect(tmp_path / "cortex.sqlite")) as other:
            other.execute("drop table directives")
        with pytest.raises(Unavailable, match="cannot be saved"):
            await served.operator.cordon(NodeRequest(node="here"))
        with pytest.raises(Unavailable, match="cannot be saved"):
            await served.operator.pin(PinModelRequest(model="ada"))
        assert [n.cordoned for n in served.gateway.fleet.snapshot.nodes] == [True]
        assert [pin.model for pin in served.gateway.controller.directives.pins.all()] == ["ada"]
