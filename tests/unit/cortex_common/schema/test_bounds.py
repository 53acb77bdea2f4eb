"""Every number that a daemon reads has bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from cortex_common.config.catalogue import Catalogue, Duration
from cortex_common.config.gateway import GatewayConfig
from cortex_common.config.neuron import NeuronConfig
from cortex_common.schema.audit import AuditEntry
from cortex_common.schema.bounds import Count, Float
from cortex_common.schema.hardware import Discovery
from cortex_common.schema.instances import (
    LifecycleEntry,
    LoadSpec,
    ModelInfo,
    NodeStatus,
    RestartRequest,
    UnloadRequest,
)
from cortex_common.schema.keys import CreateKeyRequest
from cortex_common.schema.operations import OPERATIONS
from cortex_common.units import parse_size
from neuron_server.state_store import EngineRecord, PastLoad

READ = (
    *(GatewayConfig, NeuronConfig, Catalogue, CreateKeyRequest),
    *(operation.request for operation in OPERATIONS),
    *(LoadSpec, UnloadRequest, RestartRequest, Discovery, NodeStatus, LifecycleEntry),
    *(EngineRecord, PastLoad),
)


def unbounded(schema: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of numbers in a JSON schema that have no maximum."""
    if isinstance(schema, list):
        for inner in schema:
            yield from unbounded(inner, path)
    elif isinstance(schema, dict):
        number = schema.get("type") in {"integer", "number"}
        if number and not {"maximum", "exclusiveMaximum", "enum", "const"} & schema.keys():
            yield path
        for key, inner in schema.items():
            yield from unbounded(inner, f"{path}/{key}")


@pytest.mark.parametrize("model", READ, ids=lambda model: model.__name__)
def test_every_number_has_an_upper_bound(model):
    """No setting, request or report can hold a number that overflows when it is used or stored."""
    assert list(unbounded(TypeAdapter(model).json_schema())) == []
    assert "maximum" in str(TypeAdapter(AuditEntry).json_schema()["properties"]["id"])


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400", "1e300"])
def test_numbers_are_finite(text: str):
    """JSON as Python writes it has NaN and infinities."""
    with pytest.raises(ValidationError):
        TypeAdapter(Float).validate_json(text)


@pytest.mark.parametrize("text", [f"1{'0' * 400}", "9007199254740992", "-1"], ids=range(3))
def test_counts_are_exact_and_not_negative(text: str):
    """An integer that SQLite or another JSON parser would not keep is rejected."""
    with pytest.raises(ValidationError):
        TypeAdapter(Count).validate_json(text)


@pytest.mark.parametrize(
    "value", ["1" + "0" * 400 + "w", "99999999w", float("inf"), 1e10], ids=range(4)
)
def test_durations_end_within_a_hundred_years(value: str | float):
    """A duration can be added to the current time."""
    with pytest.raises(ValidationError):
        TypeAdapter(Duration).validate_python(value)


def test_a_size_of_absurd_length_is_an_error_of_the_setting():
    """A headroom is converted to bytes."""
    with pytest.raises(ValueError, match="exbibyte"):
        parse_size("9" * 400)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("instance_id", "a\r\nset-cookie: b"),
        ("instance_id", "../../etc"),
        ("instance_id", "a\n"),
        ("instance_id", ""),
        ("id", "m\r\nx: y"),
        ("id", "m\x1b[2J"),
        ("id", "m\u202eevil"),
        ("id", "x" * 513),
        ("url", "http://user:secret@127.0.0.1:1"),
        ("url", "http://127.0.0.1:1\r\nx: y"),
        ("url", "http://127.0.0.1:1?a=b"),
        ("url", "file:///etc/passwd"),
        ("url", "http://"),
        ("vram_used_mb", 10**400),
        ("vram_used_mb", -1),
        ("load_seconds", 1e400),
        ("in_flight", 2**63),
    ],
    ids=range(17),
)
def test_what_a_node_reports_is_checked(field: str, value: object):
    """Ids and URLs of instances end up in headers, request lines and file names."""
    report = {"id": "m", "harness": "h", "status": "ready", "instance_id": "m-0"}
    ModelInfo.model_validate(report)
    with pytest.raises(ValidationError):
        ModelInfo.model_validate(report | {field: value})
