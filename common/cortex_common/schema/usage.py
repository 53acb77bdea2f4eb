"""Usage reports of gateways about the use of a node's instances.

A node can't see requests that reach its engines without its relay, and no node can tell a good answer from an error.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cortex_common.schema.base import StrictWireModel
from cortex_common.schema.bounds import Count, Seconds
from cortex_common.schema.instances import InstanceId


class InstanceUsage(StrictWireModel):
    """The use of one instance since the previous report of the same gateway.

    Attributes:
        instance_id: the instance.
        in_flight: requests of this gateway in flight.
        idle_s: seconds since its last request ended; 0 while one is in flight.
        succeeded: requests that it answered, client errors included.
        failed: requests that it failed: no answer, an answer that broke off, or a 5xx.
        failed_in_row: requests that it failed since it last answered one of this gateway.
        reason: why it failed the last one.
    """

    instance_id: InstanceId
    in_flight: Count = 0
    idle_s: Seconds = 0.0
    succeeded: Count = 0
    failed: Count = 0
    failed_in_row: Count = 0
    reason: Annotated[str, Field(max_length=512)] = ""


class UsageReport(StrictWireModel):
    """POST /usage: the use of some of a node's instances.

    Attributes:
        gateway: identifies the gateway process.
        instances: the instances that were used, or still are.
    """

    gateway: Annotated[str, Field(max_length=64)] = ""
    instances: Annotated[tuple[InstanceUsage, ...], Field(max_length=4096)] = ()


REPORT_INTERVAL_S = 5.0
"""Seconds after which a gateway repeats its report about instances with requests in flight."""

REPORT_EXPIRY_S = 15.0
"""Seconds after which a node no longer counts the requests of a gateway that does not report any more."""
