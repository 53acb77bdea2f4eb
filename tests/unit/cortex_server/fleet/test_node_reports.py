"""What a node may claim."""

from __future__ import annotations

import pytest

from cortex_common.config.catalogue import ModelConfig
from cortex_common.config.gateway import NeuronEntry, UpstreamEntry
from cortex_common.schema.instances import ModelInfo
from cortex_server.fleet.node_reports import routing_refusal


def instance(url: str) -> ModelInfo:
    """Return a ready instance with this URL."""
    report = {"id": "m", "harness": "h", "status": "ready", "instance_id": "m-0", "url": url}
    return ModelInfo.model_validate(report)


def node(endpoint: str, **more: object) -> NeuronEntry:
    """Return the settings of a node."""
    return NeuronEntry.model_validate({"name": "n", "endpoint": endpoint} | more)


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://gpu1:9090", "http://gpu1:9090/engines/m-0"),
        ("http://GPU1:9090", "http://gpu1:8100"),
        ("http://127.0.0.1:9090", "http://127.0.0.1:8100"),
        ("http://localhost:9090", "http://127.0.0.1:8100"),
        ("http://localhost:9090", "http://[::1]:8100"),
        ("http://localhost:9090", "http+unix://%2Frun%2Fengine.sock"),
        ("https://10.0.0.5:9090", "https://10.0.0.5:9090/engines/m-0"),
    ],
)
def test_engines_are_on_their_node(endpoint: str, url: str):
    """The same host, or loopback on both."""
    assert routing_refusal(instance(url), node(endpoint), None) is None


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://gpu1:9090", "http://gpu2:9090/engines/m-0"),
        ("http://gpu1:9090", "http://gpu1.evil.example:8100"),
        ("http://gpu1:9090", "http://127.0.0.1:8000"),
        ("http://gpu1:9090", "http://169.254.169.254/latest"),
        ("http://gpu1:9090", "http+unix://%2Frun%2Fdocker.sock"),
        ("http://127.0.0.1:9090", "http://10.0.0.5:8100"),
        ("http://gpu1:9090", "http://gpu1:99999"),
        ("http://gpu1:9090", "http://gpu1:x"),
        ("http://gpu1:9090", "http://[gpu1"),
    ],
)
def test_an_engine_elsewhere_gets_no_requests(endpoint: str, url: str):
    """A node cannot direct prompts to another server, or to services of the gateway's own host."""
    assert "not on the node" in str(routing_refusal(instance(url), node(endpoint), None))


def test_other_addresses_of_a_node_are_configured():
    """A node whose engines listen on another interface."""
    entry = node("http://gpu1:9090", engine_hosts=["10.0.0.5", "GPU1.fast"])
    assert routing_refusal(instance("http://10.0.0.5:8100"), entry, None) is None
    assert routing_refusal(instance("http://gpu1.fast:8100"), entry, None) is None
    assert routing_refusal(instance("http://10.0.0.6:8100"), entry, None) is not None


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({}, None),
        ({"nodes": ["n", "other"]}, None),
        ({"labels": {"rack": "a"}}, None),
        ({"nodes": ["other"]}, "not among the nodes of its model config"),
        ({"labels": {"rack": "b"}}, "the node has no label rack=b"),
    ],
)
def test_a_model_is_served_by_the_nodes_of_its_config(rules: dict[str, object], reason: str | None):
    """`nodes` and `labels` hold for routing, not only for placement."""
    config = ModelConfig.model_validate({"id": "m", "harness": "h"} | rules)
    entry = node("http://gpu1:9090", labels={"rack": "a"})
    assert routing_refusal(instance("http://gpu1:8100"), entry, config) == reason


def test_an_upstream_has_no_labels():
    """It serves a model with labels in no case, and one with nodes if it is among them."""
    entry = UpstreamEntry(name="cloud", base_url="https://api.example.com")
    found = instance("https://api.example.com")
    labelled = ModelConfig(id="m", harness="h", labels={"rack": "a"})
    assert routing_refusal(found, entry, labelled) == "the node has no label rack=a"
    assert routing_refusal(found, entry, ModelConfig(id="m", harness="h", nodes=("n",)))
    assert routing_refusal(found, entry, ModelConfig(id="m", harness="h", nodes=("cloud",))) is None
