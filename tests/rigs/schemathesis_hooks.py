"""Hooks of schemathesis for the daemons: requests that never end are not sent."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def before_call(_context: Any, case: schemathesis.Case, **_kwargs: Any) -> None:
    """Remove `follow`, with which a log has no end, and `wait`, with which a load is answered at its end."""
    for values, name in ((case.query, "follow"), (case.body, "wait")):
        if isinstance(values, dict):
            values.pop(name, None)
