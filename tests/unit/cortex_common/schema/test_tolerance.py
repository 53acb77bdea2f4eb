"""Messages of newer neurons: what this version can't read is left out, and the rest holds."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from cortex_common.schema.hardware import Discovery
from cortex_common.schema.instances import InstanceState, NodeStatus


def test_unknown_words_of_a_newer_neuron_are_tolerated():
    """An unknown state is read as one that holds memory; unreadable entries are left out."""
    model = {"id": "m", "harness": "h", "instance_id": "i", "status": "ready"}
    text = json.dumps(
        {
            "health": {"uptime_secs": 1, "devices": [{"index": "?"}], "news": True},
            "models": [model, model | {"status": "asleep"}, {"id": "no state"}],
            "directives": [{"kind": "quota", "model": "m"}, {"kind": "cordon"}],
            "failures": [{"model": "m", "kind": "crash", "count": "many"}],
        }
    )
    status = NodeStatus.model_validate_json(text)
    assert [m.status for m in status.models] == [InstanceState.READY, InstanceState.STOPPING]
    assert [d.kind for d in status.directives] == ["cordon"]
    assert status.health.devices == ()
    assert status.failures == ()


def test_an_unknown_kind_of_device_is_left_out():
    """A device or a harness of an unknown kind does not hide the others."""
    device = {"index": 0, "uuid": "u", "name": "n", "vram_total_mb": 1}
    text = json.dumps(
        {
            "hostname": "h",
            "os": "",
            "kernel": "",
            "devices": [device, device | {"index": 1, "kind": "npu"}],
            "harness_info": {
                "a": {"engine": "a"},
                "b": {"engine": "b", "device_kinds": ["npu"]},
            },
        }
    )
    found = Discovery.model_validate_json(text)
    assert [d.index for d in found.devices] == [0]
    assert list(found.harness_info) == ["a"]


def test_what_is_no_status_is_rejected():
    """Tolerance has an end: a message without its required parts is an error."""
    with pytest.raises(ValidationError):
        NodeStatus.model_validate_json('{"models": []}')
    with pytest.raises(ValidationError):
        NodeStatus.model_validate_json('{"health": {"uptime_secs": 1}, "models": "none"}')
