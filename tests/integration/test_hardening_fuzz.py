"""Random requests generated from the OpenAPI documents of both daemons never get a 500."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any
from urllib.parse import quote

import httpx
from lifecycle_kit import gateway, neuron, tiny

from cortex_server.auth.keys import hash_of

TEXTS = ("", "a", "tiny", "n", "../../etc", "a/b", "\x00", "é\u202e", "x" * 5000, "2026-01-01", "*")
NUMBERS = (0, 1, -1, 3, 10**30, -(10**12), 0.5, 1e308, 65536)
ENDLESS = ("/operator/v1/events", "/events")


class Fuzz:
    """Generates values that mostly fit a schema, and sometimes don't.

    Args:
        document: an OpenAPI document.
        seed: seed of the random generator, to reproduce a failure.
    """

    def __init__(self, document: dict[str, Any], seed: str) -> None:
        self._schemas = document.get("components", {}).get("schemas", {})
        self._random = random.Random(seed)

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        """Return a value for a schema."""
        several = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
        if self._random.random() < 0.15 or depth > 5:
            return self.junk()
        if several:
            return self.value(self._random.choice(several), depth)
        if "$ref" in schema:
            return self.value(self._schemas[schema["$ref"].rsplit("/", 1)[1]], depth)
        if schema.get("type") == "object":
            named, needed = schema.get("properties", {}), schema.get("required", ())
            chosen = [n for n in named if n in needed or self._random.random() < 0.4]
            return {n: self.value(named[n], depth + 1) for n in chosen}
        if schema.get("type") == "array":
            inner = schema.get("items", {})
            return [self.value(inner, depth + 1) for _ in range(self._random.randrange(3))]
        return self.plain(schema)

    def plain(self, schema: dict[str, Any]) -> Any:
        """Return a value for a schema without parts."""
        numbers = {"integer": NUMBERS, "number": NUMBERS}
        known = numbers | {"boolean": (True, False), "string": TEXTS}
        found = schema.get("enum") or known.get(schema.get("type", ""))
        return self._random.choice(found) if found else self.junk()

    def junk(self) -> Any:
        """Return any JSON value."""
        plain = (*TEXTS, *NUMBERS, None, True, [], {}, [[]], {"a": {"b": [None]}})
        return self._random.choice(plain)


async def fuzzed(http: httpx.AsyncClient, seed: int, rounds: int) -> Counter[int]:
    """Return the statuses of random requests to every operation that ends."""
    document = (await http.get("/openapi.json")).json()
    statuses: Counter[int] = Counter()
    for path, operations in document["paths"].items():
        for method, described in operations.items():
            if path in ENDLESS:
                continue
            # Seeded by operation, so that a new route does not change the requests of others.
            fuzz = Fuzz(document, f"{seed} {method} {path}")
            for _ in range(rounds):
                url, query = path, {}
                for parameter in described.get("parameters", ()):
                    made = fuzz.value(parameter["schema"])
                    if parameter["in"] == "path":
                        url = url.replace(f"{{{parameter['name']}}}", quote(str(made), safe=""))
                    elif made is not None:
                        query[parameter["name"]] = str(made)
                query.pop("follow", None)  # a followed log has no end
                body = described.get("requestBody", {}).get("content", {}).get("application/json")
                sent = None if body is None else fuzz.value(body["schema"])
                answer = await http.request(method, url, params=query, json=sent)
                assert answer.status_code != 500, (method, url, query, sent, answer.text)
                statuses[answer.status_code] += 1
    return statuses


async def test_no_request_to_the_gateway_is_a_500(tmp_path):
    """Random calls of the operator and model routes are all answered."""
    # With its own key: the keys that the fuzzer creates would lock it out.
    key = {"name": "fuzz", "hash": hash_of("fuzz"), "scopes": ["infer", "operator"]}
    async with (
        neuron(tmp_path, 512) as node,
        gateway({"n": node.url}, (tiny(tmp_path, "tiny"),), keys=[key]) as served,
    ):
        served.http.headers["x-api-key"] = "fuzz"
        statuses = await fuzzed(served.http, 1, 8)
    assert sum(statuses.values()) > 200
    assert statuses[200] > 20


async def test_no_request_to_a_neuron_is_a_500(tmp_path):
    """Random calls of the neuron's routes are all answered."""
    async with neuron(tmp_path, 512) as node, httpx.AsyncClient(base_url=node.url) as http:
        statuses = await fuzzed(http, 3, 15)
    assert sum(statuses.values()) > 100
