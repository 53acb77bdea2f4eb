"""What is observed about a running engine."""

from __future__ import annotations

import resource
from typing import Any, cast

import pytest

from cortex_common.schema.instances import InstanceId
from neuron_server.instances.witness import EngineWitness


@pytest.mark.parametrize(("descriptors_left", "healthy"), [(True, False), (False, True)])
async def test_a_check_that_fails_for_want_of_descriptors_says_nothing(
    descriptors_left: bool, healthy: bool
):
    """A neuron that can't open a socket must not restart the engines that it can't ask."""

    async def fail() -> bool:
        return False

    unused = cast(Any, None)
    witness = EngineWitness(InstanceId("i-1"), unused, unused, fail)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if not descriptors_left:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
    try:
        assert await witness.is_healthy() is healthy
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
