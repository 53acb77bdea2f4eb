"""What the gateway keeps of its nodes over a change of their configuration."""

from __future__ import annotations

import asyncio

from cortex_common.clock import SystemClock
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import NeuronEntry
from cortex_common.schema.engine_traits import LLAMACPP, OPENAI
from cortex_common.schema.fleet import FleetSnapshot
from cortex_common.schema.hardware import Discovery, HarnessInfo, Health
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId, ModelInfo, NodeStatus
from cortex_server.fleet.state import Fleet
from cortex_server.metrics.series import Metrics


def entry(name: str, endpoint: str) -> NeuronEntry:
    """A node of cortex.toml."""
    return NeuronEntry.model_validate({"name": name, "endpoint": endpoint})


def fleet(*entries: NeuronEntry) -> Fleet:
    """A fleet of these nodes, none of which has told anything yet."""
    return Fleet(entries, Catalogue(), SystemClock(), Metrics())


def cordoned(snapshot: FleetSnapshot) -> list[str]:
    """The names of the cordoned nodes."""
    return [node.name for node in snapshot.nodes if node.cordoned]


def status(*instances: str) -> NodeStatus:
    """A node with these instances, ready."""
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


def test_no_name_is_called_unknown_before_every_node_was_heard():
    """What a node serves without a profile is known from its first report on; a client may ask before."""
    nodes = [NeuronEntry(name=n, endpoint="http://127.0.0.1:1") for n in ("n1", "n2")]
    known = fleet(*nodes)
    known.reported("n1", status())
    early = known.names.not_found("m")
    assert (early.status, early.retry_after) == (503, 1.0)
    assert "n2 has still to say" in early.message
    known.lost("n2", "refused")
    assert known.names.not_found("m").status == 404


def test_requests_are_worded_by_the_traits_that_a_node_reports():
    """A harness that the node no longer has gets OpenAI's own traits; a new report replaces them."""
    nodes = fleet(entry("a", "http://a"))
    nodes.discovered("a", Discovery(hostname="a", os="", kernel=""))
    nodes.reported("a", status("i-1"))
    (endpoint,) = nodes.ready("m")
    assert (endpoint.engine, endpoint.traits) == ("fake", OPENAI)

    info = HarnessInfo(engine="llamacpp", traits=LLAMACPP)
    nodes.discovered("a", Discovery(hostname="a", os="", kernel="", harness_info={"fake": info}))
    assert nodes.ready("m") == [endpoint]
    assert (endpoint.engine, endpoint.traits) == ("llamacpp", LLAMACPP)


def test_a_cordoned_node_stays_so_when_its_endpoint_moves():
    """Only the operator who kept work off a node lets it come again."""
    known = fleet(entry("a", "http://old"), entry("b", "http://b"))
    known.set_cordoned("a", True)
    known.use_nodes((entry("a", "http://new"), entry("b", "http://b")))
    assert cordoned(known.snapshot) == ["a"]


def test_a_neuron_that_is_known_by_two_names_may_lose_an_instance():
    """Two URLs may lead to one neuron; what it ended is gone under both names."""
    known = fleet(entry("a", "http://127.0.0.1:9"), entry("b", "http://localhost:9"))
    for told in (status("i-1"), status()):
        known.reported("a", told)
        known.reported("b", told)
    assert known.ready("m") == []
    assert known.snapshot.instances() == ()


async def test_a_stream_is_counted_on_when_its_node_is_renamed_or_moved():
    """Whoever ends the instance waits for the streams that reached it by the old name or address."""
    old, renamed, moved = entry("a", "http://a"), entry("b", "http://a"), entry("b", "http://c")
    known = fleet(old)
    known.reported("a", status("i-1"))
    (endpoint,) = known.ready("m")
    known.acquire(endpoint)
    for now in (renamed, moved):
        known.use_nodes((now,))
        known.reported("b", status("i-1"))
        assert [i.in_flight for i in known.snapshot.instances()] == [1]
    waiting = asyncio.create_task(known.when_idle(InstanceId("i-1")))
    await asyncio.sleep(0)
    assert not waiting.done()
    known.release(endpoint)
    await waiting
