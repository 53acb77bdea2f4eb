"""What a node may claim: engines on its own host, and models whose config allows it. Pure.

The wire types check the form of a report. Here a report is compared with the configuration, so that a compromised or
misconfigured node can neither direct prompts and its token to another server nor take over another node's models.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from cortex_common.config.catalogue import ModelConfig
from cortex_common.config.gateway import NeuronEntry, NodeEntry
from cortex_common.schema.instances import ModelInfo


def routing_refusal(
    info: ModelInfo, entry: NodeEntry, model_config: ModelConfig | None
) -> str | None:
    """Return why no request is sent to an instance that a node reports, for people; None if it may get requests.

    Args:
        info: the instance.
        entry: settings of the node.
        model_config: model config of the instance's model, if there is one.
    """
    if model_config is not None:
        labels = entry.labels if isinstance(entry, NeuronEntry) else {}
        if reason := model_config.node_refusal(entry.name, labels):
            return reason
    if isinstance(entry, NeuronEntry) and info.url is not None and not _is_on_node(info.url, entry):
        return "its engine's URL is not on the node; if it is, add its host to `engine_hosts`"
    return None


def _is_on_node(url: str, entry: NeuronEntry) -> bool:
    try:
        engine, host = urlsplit(url), urlsplit(entry.endpoint).hostname or ""
        if engine.scheme == "http+unix":
            return _is_loopback(host)
        name = engine.hostname or ""
        if engine.port is None and ":" in engine.netloc.rpartition("]")[2]:
            return False
    except ValueError:  # of a port or an IPv6 address
        return False
    return (
        name == host
        or (_is_loopback(name) and _is_loopback(host))
        or name in {allowed.lower() for allowed in entry.engine_hosts}
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
