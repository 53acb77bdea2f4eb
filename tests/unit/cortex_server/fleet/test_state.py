"""The fleet's state across changes of the configuration."""

from __future__ import annotations

import asyncio

from cortex_common.clock import SystemClock
from cortex_common.config.catalogue import Catalogue, ModelConfig
from cortex_common.config.gateway import NeuronEntry
from cortex_common.schema.engine_traits import LLAMACPP, OPENAI
from cortex_common.schema.fleet import FleetSnapshot
from cortex_common.schema.hardware import Discovery, HarnessInfo, Health
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId, ModelInfo, NodeStatus
from cortex_server.fleet.state import Fleet
from cortex_server.metrics.series import Metrics


def entry(name: str, endpoint: str) -> NeuronEntry:
    """Return a [[neurons]] entry of cortex.toml."""
    return NeuronEntry.model_validate({"name": name, "endpoint": endpoint})


def fleet(*entries: NeuronEntry) -> Fleet:
    """Return a fleet of these nodes, none of which has reported yet."""
    return Fleet(entries, Catalogue(), SystemClock(), Metrics())


def cordoned(snapshot: FleetSnapshot) -> list[str]:
    """Return the names of the cordoned nodes."""
    return [node.name for node in snapshot.nodes if node.cordoned]


def status(*instances: str) -> NodeStatus:
    """Return a status report with these ready instances."""
    infos = tuple(
        ModelInfo(
            id=ModelId("m"),
            instance_id=InstanceId(name),
            status=InstanceState.READY,
            url="http://127.0.0.1:8100",
            harness="fake",
        )
        for name in instances
    )
    return NodeStatus(health=Health(uptime_secs=1.0), models=infos)


def test_no_name_is_unknown_before_every_node_has_reported():
    """A model that a node serves without a model config is known only once the node has reported."""
    nodes = [NeuronEntry(name=n, endpoint="http://127.0.0.1:1") for n in ("n1", "n2")]
    known = fleet(*nodes)
    known.update_status("n1", status())
    early = known.aliases.not_found_error("m")
    assert (early.status, early.retry_after) == (503, 1.0)
    assert "waiting for n2" in early.message
    known.mark_unreachable("n2", "refused")
    assert known.aliases.not_found_error("m").status == 404


def test_requests_are_worded_by_the_traits_that_a_node_reports():
    """A harness that the node no longer has gets OpenAI's own traits; a new report replaces them."""
    nodes = fleet(entry("a", "http://127.0.0.1:1"))
    nodes.update_discovery("a", Discovery(hostname="a", os="", kernel=""))
    nodes.update_status("a", status("i-1"))
    (endpoint,) = nodes.ready("m")
    assert (endpoint.engine, endpoint.traits) == ("fake", OPENAI)

    info = HarnessInfo(engine="llamacpp", traits=LLAMACPP)
    nodes.update_discovery(
        "a", Discovery(hostname="a", os="", kernel="", harness_info={"fake": info})
    )
    assert nodes.ready("m") == [endpoint]
    assert (endpoint.engine, endpoint.traits) == ("llamacpp", LLAMACPP)


def test_a_cordon_survives_a_change_of_endpoint():
    """Only the operator who cordoned a node uncordons it."""
    known = fleet(entry("a", "http://old"), entry("b", "http://b"))
    known.set_cordoned("a", True)
    known.use_nodes((entry("a", "http://new"), entry("b", "http://b")))
    assert cordoned(known.snapshot) == ["a"]


def test_an_instance_of_a_neuron_with_two_names_can_disappear():
    """Two URLs can lead to one neuron; an instance that it unloads is gone under both names."""
    known = fleet(entry("a", "http://127.0.0.1:9"), entry("b", "http://localhost:9"))
    for report in (status("i-1"), status()):
        known.update_status("a", report)
        known.update_status("b", report)
    assert known.ready("m") == []
    assert known.snapshot.instances() == ()


async def test_a_stream_still_counts_after_its_node_is_renamed_or_moved():
    """A drain waits for the streams that reached the instance by the old name or address."""
    old, renamed, moved = (
        entry("a", "http://127.0.0.1:1"),
        entry("b", "http://127.0.0.1:1"),
        entry("b", "http://127.0.0.1:2"),
    )
    known = fleet(old)
    known.update_status("a", status("i-1"))
    (endpoint,) = known.ready("m")
    known.begin_request(endpoint)
    for now in (renamed, moved):
        known.use_nodes((now,))
        known.update_status("b", status("i-1"))
        assert [i.in_flight for i in known.snapshot.instances()] == [1]
    waiting = asyncio.create_task(known.wait_idle(InstanceId("i-1")))
    await asyncio.sleep(0)
    assert not waiting.done()
    known.end_request(endpoint)
    await waiting


def test_routes_follow_the_nodes_of_a_model_config():
    """A node that a reload takes from a model config gets no more requests for it, and `ps` says why."""
    known = fleet(entry("a", "http://127.0.0.1:1"))
    known.update_status("a", status("i-1"))
    assert len(known.ready("m")) == 1
    known.use_catalogue(Catalogue(models=(ModelConfig(id="m", harness="x", nodes=("b",)),)))
    assert known.ready("m") == []
    (shown,) = known.snapshot.instances()
    assert (shown.routable, shown.failing) == (False, "not among the nodes of its model config")
    known.use_catalogue(Catalogue(models=(ModelConfig(id="m", harness="x", nodes=("a",)),)))
    assert len(known.ready("m")) == 1


def test_an_engine_that_is_not_on_its_node_gets_no_requests():
    """A compromised node cannot send prompts elsewhere."""
    known = fleet(entry("a", "http://gpu1:9090"))
    known.update_status("a", status("i-1"))
    assert known.ready("m") == []
    assert "not on the node" in str(known.snapshot.instances()[0].failing)
