"""Why a request went where it went, told afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lifecycle_rig import MODEL_MB, gateway, neuron, tiny

from cortex_cli.commands.why import one_of
from cortex_cli.output import Output, document
from cortex_cli.render.details import why_text
from cortex_common.errors import NotFound

EAGER = {"placement": {"drain_after": 0.2}, "eviction": {"drain_timeout": 20, "min_residency": 0}}


async def test_a_request_knows_what_it_waited_for(tmp_path: Path) -> None:
    """A cold start names its wait, its place and who went for it; a warm request names neither, a refused one why."""
    models = (
        tiny(tmp_path, "ada"),
        tiny(tmp_path, "bob"),
        tiny(tmp_path, "huge", vram_mb=99 * MODEL_MB),
    )
    async with (
        neuron(tmp_path, MODEL_MB + 8) as node,
        gateway({"here": node.url}, models, **EAGER) as served,
    ):

        async def asked(model: str) -> str:
            answer = await served.chat(model)
            return str(answer.headers["x-request-id"])

        first = await asked("ada")
        cold, warm, huge = await asked("bob"), await asked("bob"), await asked("huge")
        known = await served.operator.requests()
        decisions = await served.operator.decisions(cold)
        ada = (await served.operator.decisions(first))[0].instance
        assert [d.evicted for d in decisions] == [(ada,)]
        assert decisions[0].waited_s > 0
        text = why_text(one_of(known, cold), decisions)
        assert f"after {ada} had gone" in text
        assert "it was loaded for this request" in text
        request = one_of(known, cold)
        told = json.loads(document("Why", Output.JSON, request=request, decisions=decisions))
        assert told["decisions"][0]["at"].endswith("Z")
        assert told["decisions"][0]["instance"] == told["request"]["instance"]
        assert await served.operator.decisions(warm) == ()
        assert "only instance that was ready" in why_text(one_of(known, warm), ())
        refused = await served.operator.decisions(huge)
        assert "fits on no device" in refused[0].why
        assert "in vain" in why_text(one_of(known, huge), refused)
        with pytest.raises(NotFound, match="no request"):
            one_of(known, "never-seen")
