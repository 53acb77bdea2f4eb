"""Explanation of how a finished request was routed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lifecycle_kit import MODEL_MB, gateway, neuron, tiny

from cortex_cli.commands.why import find_request
from cortex_cli.render.details import why_text
from cortex_cli.render.output_format import OutputFormat, format_document
from cortex_common.errors import NotFound

EAGER = {"placement": {"drain_after": 0.2}, "eviction": {"drain_timeout": 20, "min_residency": 0}}


async def test_a_request_knows_what_it_waited_for(tmp_path: Path) -> None:
    """A cold start lists its wait, node and evictions, a warm request neither, and a refused request the reason."""
    models = (
        tiny(tmp_path, "ada"),
        tiny(tmp_path, "bob"),
        tiny(tmp_path, "huge", vram_mb=99 * MODEL_MB),
    )
    async with (
        neuron(tmp_path, MODEL_MB + 8) as node,
        gateway({"here": node.url}, models, **EAGER) as served,
    ):

        async def send(model: str) -> str:
            answer = await served.chat(model)
            return str(answer.headers["x-request-id"])

        first = await send("ada")
        cold, warm, huge = await send("bob"), await send("bob"), await send("huge")
        requests = await served.operator.requests()
        decisions = await served.operator.decisions(cold)
        ada = (await served.operator.decisions(first))[0].instance
        assert [d.evicted for d in decisions] == [(ada,)]
        assert decisions[0].waited_s > 0
        text = why_text(find_request(requests, cold), decisions)
        assert f"after evicting {ada}" in text
        assert "it was loaded for this request" in text
        request = find_request(requests, cold)
        document = json.loads(
            format_document("Why", OutputFormat.JSON, request=request, decisions=decisions)
        )
        assert document["decisions"][0]["at"].endswith("Z")
        assert document["decisions"][0]["instance"] == document["request"]["instance"]
        assert await served.operator.decisions(warm) == ()
        assert "only ready instance" in why_text(find_request(requests, warm), ())
        refused = await served.operator.decisions(huge)
        assert "fits on no device" in refused[0].reason
        assert "without success" in why_text(find_request(requests, huge), refused)
        with pytest.raises(NotFound, match="no request"):
            find_request(requests, "never-seen")
