"""The error tree, its envelope, and suggestions for misspelled names."""

from __future__ import annotations

import socket

import pytest

from cortex_common import errors
from cortex_common.client.control import ControlClient
from cortex_common.errors import (
    ERRORS_BY_CODE,
    CortexError,
    DoesNotFit,
    UpstreamFailed,
    envelope,
    envelope_bytes,
    from_envelope,
    nearest_names,
)


def test_error_codes_are_unique():
    """No two error classes have the same code."""
    classes = [
        c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, CortexError)
    ]
    assert len({c.code for c in classes}) == len(classes) == len(ERRORS_BY_CODE)


def test_docstring_lists_every_error():
    """The tree in the module docstring has every class with its status and code."""
    for cls in ERRORS_BY_CODE.values():
        row = next(
            line for line in (errors.__doc__ or "").splitlines() if cls.__name__ in line.split()
        )
        assert str(cls.status) in row.split()
        assert cls.code in row.split()


@pytest.mark.parametrize("cls", ERRORS_BY_CODE.values(), ids=lambda c: c.__name__)
def test_errors_round_trip_over_the_wire(cls):
    """Class, message, hints, param and details are preserved."""
    sent = cls("no", hints=["do this"], param="x", details={"needed_mb": 7})
    received = from_envelope(envelope_bytes(sent), sent.status, "GET /x")
    assert type(received) is cls
    assert (received.message, received.hints, received.param, received.details) == (
        "no",
        ("do this",),
        "x",
        {"needed_mb": 7},
    )


def test_details_do_not_overwrite_envelope_fields():
    """A detail named message does not replace the message."""
    body = envelope(DoesNotFit("too big", details={"message": "other", "free": 1}))["error"]
    assert (body["message"], body["free"]) == ("too big", 1)


def test_unreachable_peer_of_a_server_is_not_an_unreachable_server():
    """If a gateway reports that it could not reach a node, the gateway itself was reached."""
    node_gone = UpstreamFailed("no way to the node", details={"unreachable": True, "node": "n1"})
    received = from_envelope(envelope_bytes(node_gone), 502, "GET /x")
    assert received.details == {"node": "n1"}


def test_engine_errors_have_no_cortex_source():
    """Clients distinguish errors of cortex from those of an engine by `src`."""
    body = envelope(DoesNotFit("no", details={"upstream_status": 400}))["error"]
    assert not {"src", "hints"} & set(body)


def test_response_without_envelope_becomes_an_upstream_error():
    """The HTML page of a proxy is quoted in the message."""
    error = from_envelope(b"<html>Bad Gateway", 502, "GET /health")
    assert isinstance(error, UpstreamFailed)
    assert "GET /health returned 502: <html>Bad Gateway" in error.message


@pytest.mark.parametrize("body", [b'{"error":{"message":"x","code":"y","hints":5}}', b"[" * 5000])
def test_malformed_envelope_becomes_an_upstream_error(body):
    """An unexpected error body does not raise in the code that handles it."""
    assert isinstance(from_envelope(body, 500, "GET /v1/models"), UpstreamFailed)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3", "Qwen/Qwen3-Coder-30B"),
        ("Qwen3-Coder-30b", "Qwen/Qwen3-Coder-30B"),
        ("meta-llama/Lama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
    ],
)
def test_misspelled_or_abbreviated_name_finds_its_model(name, expected):
    """The name that the user most likely meant comes first."""
    assert (
        nearest_names(name, ["Qwen/Qwen3-Coder-30B", "meta-llama/Llama-3.1-8B", "gemma"])[0]
        == expected
    )


async def test_silent_event_stream_is_reported_as_timed_out():
    """A stopped process keeps its connections open; the message does not say "ReadTimeout"."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with ControlClient(url, who="n") as client:
            with pytest.raises(UpstreamFailed, match=r"closed the connection: timed out$"):
                async for _ in client.events("/events", silence_s=0.02):
                    pass
