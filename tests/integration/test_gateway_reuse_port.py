"""Several gateways on one host that share an address (`gateway.reuse_port`)."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
from rigs.gateway import GatewayProcess, gateway_process

SHARED = "reuse_port = true\n"


async def _answers(gateway: GatewayProcess) -> bool:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"{gateway.url}/health")).is_success


async def test_two_gateways_share_a_port(tmp_path: Path) -> None:
    """Both start and answer; when one ends, the other takes all connections."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    async with gateway_process(tmp_path / "first", gateway=SHARED) as first:
        second = GatewayProcess(tmp_path / "second", port=first.port)
        second.write(gateway=SHARED)
        second.start()
        try:
            await second.wait_for_event("gateway_listening")
            assert all([await _answers(first) for _ in range(16)])
            first.signal(signal.SIGTERM)
            assert await first.wait_exit() == 0
            assert all([await _answers(second) for _ in range(16)])
        finally:
            second.signal(signal.SIGTERM)
            assert await second.wait_exit() == 0


async def test_without_reuse_port_the_second_gateway_reports_the_port_as_taken(
    tmp_path: Path,
) -> None:
    """A gateway takes connections of another one only when both are configured to share."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    async with gateway_process(tmp_path / "first") as first:
        second = GatewayProcess(tmp_path / "second", port=first.port)
        second.write()
        second.start()
        assert await second.wait_exit() != 0
        assert f"can't listen on 127.0.0.1:{first.port}: Address already in use" in second.log
