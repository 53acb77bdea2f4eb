"""Usage reports: what a gateway tells a node about the use of the node's instances.

A node can't see requests that reach its engines without its relay, and no node can tell a good answer from an error.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cortex_common.schema.base import StrictWireModel
from cortex_common.schema.instances import InstanceId


class InstanceUsage(StrictWireModel):
    """The use of one instance since the previous report of the same gateway.

    Attributes:
        instance_id: the instance.
        idle_s: seconds since its last request ended; 0 while one is in flight.
        succeeded: requests that it answered, client errors included.
        failed: requests that it failed: no answer, an answer that broke off, or a 5xx.
        failed_in_row: requests that it failed since it last answered one of this gateway.
        reason: why it failed the last one.
    """

    instance_id: InstanceId
    idle_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    succeeded: Annotated[int, Field(ge=0)] = 0
    failed: Annotated[int, Field(ge=0)] = 0
    failed_in_row: Annotated[int, Field(ge=0)] = 0
    reason: Annotated[str, Field(max_length=512)] = ""


class UsageReport(StrictWireModel):
    """POST /usage: the use of some of a node's instances."""

    instances: Annotated[tuple[InstanceUsage, ...], Field(max_length=4096)] = ()
