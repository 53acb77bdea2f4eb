"""Repair of the tool calls in a stream, which works in place on the JSON objects of its chunks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from cortex_server.dialects.lenient import Json
from cortex_server.dialects.tool_calls import PartialToolCall, ToolCallIds, ToolCallTracker


class ToolCallRepair:
    """Repairs the fragments of a stream's tool calls.

    Args:
        response_id: unique among responses; missing ids are derived from it.
        repairs: counts repairs by kind.
    """

    def __init__(self, response_id: str, repairs: Counter[str]) -> None:
        self._repairs = repairs
        self._ids = ToolCallIds((), response_id, "call")
        self._trackers: dict[int, ToolCallTracker] = {}
        self._with_id: set[tuple[int, int]] = set()
        self._with_name: set[tuple[int, int]] = set()
        self._latest: PartialToolCall | None = None

    def repair(self, choice: int, fragments: list[Any]) -> bool:
        """Repair the fragments of a choice in place; return whether anything changed."""
        before = self._repairs.total()
        for fragment in fragments:
            if isinstance(fragment, dict):
                self._repair_fragment(choice, fragment)
        return self._repairs.total() != before

    def has_calls(self, choice: int) -> bool:
        """Return whether the choice has tool calls."""
        return choice in self._trackers

    def extend_arguments(self, arguments: str) -> bool:
        """Append to the arguments of the latest call; return False, without doing so, if they can be a repetition."""
        if self._latest is None or arguments.lstrip().startswith("{"):
            return False
        self._latest.add_arguments(arguments)
        return True

    def add_missing_arguments(self, choice: int) -> list[Json]:
        """Return the fragments that complete the calls of a choice without arguments: clients parse them as JSON."""
        tracker = self._trackers.get(choice)
        missing = [call for call in tracker.calls if not call.arguments.strip()] if tracker else []
        for call in missing:
            call.add_arguments("{}")
            self._repairs["tool_arguments_missing"] += 1
        return [{"index": call.position, "function": {"arguments": "{}"}} for call in missing]

    def _repair_fragment(self, choice: int, fragment: Json) -> None:
        function = fragment.get("function")
        function = function if isinstance(function, dict) else {}
        if stringify_arguments(function):
            self._repairs["tool_arguments_object"] += 1
        index = fragment.get("index")
        arguments = as_string(function.get("arguments"))
        call, new_arguments = self._trackers.setdefault(choice, ToolCallTracker()).add(
            index if isinstance(index, int) else None,
            as_string(fragment.get("id")),
            as_string(function.get("name")),
            arguments,
        )
        self._latest = call
        if new_arguments != arguments:
            function["arguments"] = new_arguments
            self._repairs["tool_arguments_repeated"] += 1
        if index != call.position:
            fragment["index"] = call.position
            self._repairs["tool_call_index"] += 1
        self._repair_identity((choice, call.position), fragment, function)

    def _repair_identity(self, key: tuple[int, int], fragment: Json, function: Json) -> None:
        """Keep id and name in the first fragment only, because SDKs concatenate them over all fragments."""
        if key not in self._with_id:
            call_id = self._ids.assign(as_string(fragment.get("id")))
            if call_id != fragment.get("id"):
                fragment["id"] = call_id
                self._repairs["tool_call_id"] += 1
            fragment.setdefault("type", "function")
            self._with_id.add(key)
        elif fragment.get("id"):
            del fragment["id"]
            self._repairs["tool_call_repeated"] += 1
        if function.get("name"):
            if key in self._with_name:
                del function["name"]
                self._repairs["tool_call_repeated"] += 1
            self._with_name.add(key)


def stringify_arguments(function: Json) -> bool:
    """Convert arguments that are JSON values to JSON text; return whether they were."""
    arguments = function.get("arguments")
    if arguments is None or isinstance(arguments, str):
        return False
    function["arguments"] = msgspec.json.encode(arguments).decode()
    return True


def as_string(value: Any) -> str:
    """Return a string, or an empty one for anything else."""
    return value if isinstance(value, str) else ""
