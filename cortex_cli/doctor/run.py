"""One run of `cortex doctor --client`: selects the model and probes it."""

from __future__ import annotations

import asyncio

from typing_extensions import override

from cortex_cli.client import GatewayTarget
from cortex_cli.color import Colors
from cortex_cli.doctor.clients import Client
from cortex_cli.doctor.findings import Finding, error, ok
from cortex_cli.doctor.probe import InvalidResponse
from cortex_cli.doctor.suite import DIALECTS, InFlight, ProbedModel, Prober
from cortex_cli.doctor.transport import ProbeTransport
from cortex_cli.error_exit import describe
from cortex_common.client.control import quote_path
from cortex_common.client.gateway import OperatorClient
from cortex_common.errors import CortexError, UpstreamFailed

_POLL_S = 0.05


class OperatorInFlight(InFlight):
    """Reads the number of requests in flight from the operator API, which requires the operator scope."""

    def __init__(self, operator: OperatorClient) -> None:
        self._operator = operator

    @override
    async def until_idle(self, model: str, seconds: float) -> bool | None:
        try:
            async with asyncio.timeout(seconds):
                while await self._in_flight(model):  # noqa: ASYNC110 - state of another host
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            return False
        except CortexError:
            return None
        return True

    async def _in_flight(self, model: str) -> int:
        snapshot = await self._operator.fleet()
        view = snapshot.model(model)
        return 0 if view is None else view.in_flight


async def probe_client(target: GatewayTarget, client: Client, name: str | None) -> list[Finding]:
    """Probe a model for one client.

    Args:
        target: the gateway and the key.
        client: the client whose requirements are checked.
        name: name of the model; None for one that is ready, or else any.
    """
    async with (
        ProbeTransport(target, DIALECTS[client].HEADERS) as transport,
        OperatorClient(target.url, who="the gateway", token=target.key) as operator,
    ):
        try:
            model = await _find_model(transport, operator, name)
            findings = [ok("model list", f"has {model.name}")]
            prober = Prober(client, model, transport, OperatorInFlight(operator))
            return findings + [finding async for finding in prober.findings()]
        except InvalidResponse as invalid:
            return [error("model list", str(invalid), "`cortex models ls` lists the models")]
        except UpstreamFailed as failure:
            return [error("gateway", failure.message, describe(failure, Colors()).splitlines()[-1])]


async def _find_model(
    transport: ProbeTransport, operator: OperatorClient, name: str | None
) -> ProbedModel:
    """Return the model as the gateway's model list describes it.

    Raises:
        InvalidResponse: the list does not contain the model, or is invalid.
    """
    if name is None:
        models = (await transport.get("/v1/models"))["data"]
        if not models:
            raise InvalidResponse("the gateway lists no models")
        name = await _ready_model(operator) or str(models[0]["id"])
    entry = await transport.get(f"/v1/models/{quote_path(name)}")
    return ProbedModel(name, entry.get("context_length") or entry.get("max_input_tokens"))


async def _ready_model(operator: OperatorClient) -> str | None:
    try:
        models = (await operator.fleet()).models
    except CortexError:
        return None
    return next((m.id for m in models if m.nodes), None)
