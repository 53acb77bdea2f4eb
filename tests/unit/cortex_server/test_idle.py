"""Idle means idle: an idle gateway wakes up a few times a second, whatever happened before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from virtual_time import rounds_per_second

from cortex_common.config.catalogue import Catalogue, ModelConfig
from cortex_common.config.gateway import GatewayConfig
from cortex_server.gateway import Gateway

Idle = Callable[[float], Coroutine[Any, Any, None]]

MAX_ROUNDS_PER_S = 40.0
"""Of the sampling of the loop's lag, the checks of deadlines and of what time makes due; several rounds for each."""


def new_gateway() -> Gateway:
    """Return a gateway with a model and a node that is off."""
    config = GatewayConfig.model_validate({"gateway": {"metrics_listen": None}})
    return Gateway(config, Catalogue(models=(ModelConfig(id="m", harness="fake"),)))


def test_an_idle_gateway_wakes_up_rarely() -> None:
    """No background task of an idle gateway runs without work."""

    async def work(idle: Idle) -> None:
        async with new_gateway().running():
            await idle(0.0)

    assert rounds_per_second(work) < MAX_ROUNDS_PER_S


def test_a_request_that_left_keeps_nothing_awake() -> None:
    """A client that waited for a model and left is waited for no more."""

    async def work(idle: Idle) -> None:
        gateway = new_gateway()
        config = gateway.fleet.model_config("m")
        assert config is not None
        async with gateway.running():
            for _ in range(3):
                waiting = asyncio.create_task(
                    gateway.controller.acquire(config, request_id="r", timeout_s=0.001)
                )
                await asyncio.sleep(0.5)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            await idle(0.0)

    assert rounds_per_second(work) < MAX_ROUNDS_PER_S
