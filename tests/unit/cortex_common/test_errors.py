"""The error tree, its envelope, and names for mistyped models."""

from __future__ import annotations

import socket

import pytest

from cortex_common import errors
from cortex_common.client.control import ControlClient
from cortex_common.errors import (
    BY_CODE,
    CortexError,
    DoesNotFit,
    UpstreamFailed,
    envelope,
    envelope_bytes,
    from_envelope,
    nearest,
)


def test_every_error_has_a_code_of_its_own():
    """No two classes of the tree share a code."""
    classes = [
        c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, CortexError)
    ]
    assert len({c.code for c in classes}) == len(classes) == len(BY_CODE)


def test_the_tree_in_the_docstring_is_the_tree():
    """Each class stands in the module's docstring with its status and code."""
    for cls in BY_CODE.values():
        row = next(
            line for line in (errors.__doc__ or "").splitlines() if cls.__name__ in line.split()
        )
        assert str(cls.status) in row.split()
        assert cls.code in row.split()


@pytest.mark.parametrize("cls", BY_CODE.values(), ids=lambda c: c.__name__)
def test_an_error_survives_the_wire(cls):
    """Class, message, hints, param and details come back as they were."""
    sent = cls("no", hints=["do this"], param="x", details={"needed_mb": 7})
    got = from_envelope(envelope_bytes(sent), sent.status, "GET /x")
    assert type(got) is cls
    assert (got.message, got.hints, got.param, got.details) == (
        "no",
        ("do this",),
        "x",
        {"needed_mb": 7},
    )


def test_details_never_replace_the_envelopes_own_fields():
    """A detail called message does not hide the message."""
    body = envelope(DoesNotFit("too big", details={"message": "other", "free": 1}))["error"]
    assert (body["message"], body["free"]) == ("too big", 1)


def test_who_answered_was_reached():
    """An error of a gateway that could not reach a node is not taken for a gateway that can't be reached."""
    node_gone = UpstreamFailed("no way to the node", details={"unreachable": True, "node": "n1"})
    told = from_envelope(envelope_bytes(node_gone), 502, "GET /x")
    assert told.details == {"node": "n1"}


def test_what_an_engine_said_does_not_claim_to_be_ours():
    """Clients tell the two apart by `src`."""
    body = envelope(DoesNotFit("no", details={"upstream_status": 400}))["error"]
    assert not {"src", "hints"} & set(body)


def test_an_answer_that_is_no_envelope_becomes_an_upstream_error():
    """A proxy's HTML page is quoted, not parsed."""
    got = from_envelope(b"<html>Bad Gateway", 502, "GET /health")
    assert isinstance(got, UpstreamFailed)
    assert "GET /health answered 502: <html>Bad Gateway" in got.message


@pytest.mark.parametrize("body", [b'{"error":{"message":"x","code":"y","hints":5}}', b"[" * 5000])
def test_odd_words_of_a_server_are_an_error_like_any_other(body):
    """A provider's listing that failed so ended whoever lists its models, and the node stayed as it was."""
    assert isinstance(from_envelope(body, 500, "GET /v1/models"), UpstreamFailed)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("qwen3", "Qwen/Qwen3-Coder-30B"),
        ("Qwen3-Coder-30b", "Qwen/Qwen3-Coder-30B"),
        ("meta-llama/Lama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
    ],
)
def test_a_mistyped_or_shortened_name_finds_its_model(asked, found):
    """What the user probably meant comes first."""
    assert nearest(asked, ["Qwen/Qwen3-Coder-30B", "meta-llama/Llama-3.1-8B", "gemma"])[0] == found


async def test_a_node_that_falls_silent_is_said_to_have_timed_out():
    """A stopped process keeps its connections; "ReadTimeout" is what a library calls that."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with ControlClient(url, who="n") as client:
            with pytest.raises(UpstreamFailed, match=r"broke off: it timed out$"):
                async for _ in client.events("/events", silence_s=0.02):
                    pass
