"""What an entry in the table of operator operations says; the table is in `cortex_common.schema.operations`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from pydantic import BaseModel, TypeAdapter

OPERATOR_PREFIX = "/operator/v1"
"""Prefix of all operator routes; the scope that opens them is in the gateway's table of permissions."""

Request = TypeVar("Request", bound=BaseModel)
Response = TypeVar("Response")


class OperationTarget(StrEnum):
    """What an operation acts on; a request that names it does so in a field of the same name."""

    MODEL = "model"
    NODE = "node"
    REQUEST = "request"
    FLEET = "fleet"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Operation(Generic[Request, Response]):
    """One operation of the operator API: `POST /operator/v1{path}` with a JSON body.

    Attributes:
        name: name of the command, of the action in `cortex top`, and of the method that implements it.
        path: path below `OPERATOR_PREFIX`.
        target: what it acts on.
        request: type of the body.
        response: validates the response.
        summary: one line without a full stop, for help texts and the API reference.
        description: the sentences that follow it there.
        past: past participle for messages, such as "loaded".
        changes: whether it changes the fleet; False for plans.
        timeout_s: seconds that a client waits for the response.
    """

    name: str
    path: str
    target: OperationTarget
    request: type[Request]
    response: TypeAdapter[Response]
    summary: str
    description: str
    past: str = ""
    changes: bool = True
    timeout_s: Callable[[Request], float] = lambda _request: 10.0

    @property
    def verb(self) -> str:
        """The name as a word of the command line, such as "forget-size"."""
        return self.name.replace("_", "-")

    @property
    def command(self) -> str:
        """Command line without arguments, such as "cortex models load"."""
        match self.target:
            case OperationTarget.FLEET:
                return f"cortex {self.name}"
            case OperationTarget.GATEWAY:
                return f"cortex config {self.name}"
            case _:
                return f"cortex {self.target}s {self.verb}"

    @property
    def help(self) -> str:
        """Help text of the command."""
        return f"{self.summary}.\n\n{self.description}"
