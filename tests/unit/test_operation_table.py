"""The table of operator operations agrees with its implementations, its client and its commands."""

from __future__ import annotations

import pytest
from demo_fleet import cortex_here

from cortex_cli.tui.commands import FLEET_OPERATIONS
from cortex_common.client.gateway import OperatorClient
from cortex_common.schema.operation import Operation, OperationTarget
from cortex_common.schema.operations import OPERATIONS
from cortex_server.lifecycle.operations import Operations

ids = [operation.name for operation in OPERATIONS]


def test_names_and_paths_are_unique():
    """No two operations share a name or a path."""
    assert len({o.name for o in OPERATIONS}) == len({o.path for o in OPERATIONS}) == len(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS, ids=ids)
def test_every_operation_has_a_client_method_and_an_implementation(operation: Operation):
    """The client has a method of the operation's name, and so has the gateway for operations on the fleet."""
    assert operation.name in vars(OperatorClient)
    if operation.target in {OperationTarget.MODEL, OperationTarget.NODE, OperationTarget.FLEET}:
        assert hasattr(Operations, operation.name)


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.changes], ids=lambda o: o.name)
def test_every_operation_that_changes_something_has_a_command(operation: Operation):
    """The command line of the operation exists."""
    done = cortex_here(*operation.command.split()[1:], "--help")

    assert done.returncode == 0


def test_the_dashboard_offers_every_operation_on_the_fleet():
    """Operations that change the fleet can be typed in `cortex top`; reloading the gateway can't."""
    assert set(FLEET_OPERATIONS) == {o.name for o in OPERATIONS if o.changes} - {"reload"}
