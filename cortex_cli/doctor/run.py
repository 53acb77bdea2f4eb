"""One run of `cortex doctor --client`: finds the model, probes it, and looks at what is left over."""

from __future__ import annotations

import asyncio
from typing import Any

from cortex_cli.client import Target
from cortex_cli.color import Paint
from cortex_cli.doctor.checks import Finding, error, ok
from cortex_cli.doctor.clients import Client
from cortex_cli.doctor.http import Asker
from cortex_cli.doctor.probe import Broken
from cortex_cli.doctor.suite import DIALECTS, Model, Prober
from cortex_cli.error_exit import describe
from cortex_common.client.gateway import OperatorClient
from cortex_common.errors import CortexError, UpstreamFailed

_LOOK_S = 0.05


class OperatorsView:
    """The number of requests under way, for those who may see it."""

    def __init__(self, operator: OperatorClient) -> None:
        self._operator = operator

    async def until_idle(self, model: str, seconds: float) -> bool | None:
        """See `prober.InFlight`."""
        try:
            async with asyncio.timeout(seconds):
                while await self._in_flight(model):  # noqa: ASYNC110 - another host's state
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            return False
        except CortexError:
            return None
        return True

    async def _in_flight(self, model: str) -> int:
        snapshot = await self._operator.fleet()
        view = snapshot.model(model)
        return 0 if view is None else view.in_flight


async def probe(where: Target, client: Client, name: str | None) -> list[Finding]:
    """All findings.

    Args:
        where: the gateway and the key.
        client: whose needs.
        name: of the model; None for one that is ready, or else any.
    """
    async with (
        Asker(where, DIALECTS[client].HEADERS) as asker,
        OperatorClient(where.url, who="the gateway", token=where.key) as operator,
    ):
        try:
            model = await _model(asker, operator, name)
            findings = [ok("model list", f"has {model.name}")]
            prober = Prober(client, model, asker, OperatorsView(operator))
            return findings + [finding async for finding in prober.findings()]
        except Broken as broken:
            return [error("model list", str(broken), "`cortex models ls` lists them")]
        except UpstreamFailed as failed:
            return [error("gateway", failed.message, describe(failed, Paint()).splitlines()[-1])]


async def _model(asker: Asker, operator: OperatorClient, name: str | None) -> Model:
    """The model as the gateway's list has it.

    Raises:
        Broken: the list lacks it, or is none.
    """
    if name is None:
        listed = (await asker.get("/v1/models"))["data"]
        if not listed:
            raise Broken("the gateway lists no model")
        name = await _ready(operator) or str(listed[0]["id"])
    found: dict[str, Any] = await asker.get(f"/v1/models/{name}")
    return Model(name, found.get("context_length") or found.get("max_input_tokens"))


async def _ready(operator: OperatorClient) -> str | None:
    try:
        models = (await operator.fleet()).models
    except CortexError:
        return None
    return next((m.id for m in models if m.nodes), None)
