"""The errors that cortex reports, as one class tree.

Classes are grouped by what the caller can do about them::

    CortexError                      500  internal_error      report it
    ├── BadRequest                   400  invalid_request     change the request
    │   ├── MalformedBody            400  malformed_body
    │   ├── MissingModel             400  missing_model
    │   ├── BodyTooLarge             413  body_too_large
    │   ├── PromptTooLong            400  context_length_exceeded  shorten the prompt, or use a larger context
    │   ├── MaxTokensTooLarge        400  max_tokens_too_large  reduce max_tokens
    │   ├── PreviousResponseNotFound 400  previous_response_not_found  send the whole conversation
    │   └── ConfigError              400  invalid_config      change the file or the environment variable
    ├── AuthenticationFailed         401  authentication_failed   send a valid key
    ├── PermissionDenied             403  permission_denied   use a key with the required scope
    ├── NotFound                     404  not_found           use a name that exists
    │   ├── ItemNotFound             404  item_not_found      send the item itself
    │   ├── ModelNotFound            404  model_not_found
    │   └── NodeNotFound             404  node_not_found
    ├── Conflict                     409  conflict            check the current state, then decide
    │   └── InstanceBusy             409  instance_busy       allow more time to drain, or cancel the requests
    ├── Cancelled                    400  cancelled           none: an operator cancelled the request
    ├── Busy                         429  busy                wait `retry_after` seconds, then retry
    │   └── RateLimited              429  rate_limited        the same, or use a key with higher limits
    ├── NotSupported                 501  not_supported       use another model or engine
    ├── Unavailable                  503  unavailable         wait `retry_after` seconds, or fix the fleet
    │   ├── NoHealthyNode            503  no_healthy_node
    │   ├── ModelLoading             503  model_loading
    │   └── LoadFailed               503  load_failed
    ├── DoesNotFit                   507  does_not_fit        free memory, or choose a smaller model
    └── UpstreamFailed               502  upstream_failed     the engine or node failed, not the request
        └── UpstreamTimeout          504  upstream_timeout

Clients match on `code`, so the code of a class never changes once released.
"""

from __future__ import annotations

import difflib
import heapq
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

JsonValue = Any
"""A value that `json.dumps` accepts, used for error details."""


class CortexError(Exception):
    """Base class of all errors that reach a user.

    Args:
        message: one sentence, without a final period, that says what is wrong.
        hints: what to do about it, each a sentence or a command to paste.
        param: field of the request, or setting, that caused the error.
        retry_after: seconds after which a retry makes sense.
        details: additional keys of the error object on the wire (numbers, names, states).
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        hints: Iterable[str] = (),
        param: str | None = None,
        retry_after: float | None = None,
        details: Mapping[str, JsonValue] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hints = tuple(hints)
        self.param = param
        self.retry_after = retry_after
        self.details = dict(details or {})


class BadRequest(CortexError):
    """The request is invalid."""

    code = "invalid_request"
    status = 400


class MalformedBody(BadRequest):
    """The body is not the JSON object that the route expects."""

    code = "malformed_body"


class MissingModel(BadRequest):
    """The body does not name a model."""

    code = "missing_model"


class BodyTooLarge(BadRequest):
    """The body exceeds the gateway's size limit."""

    code = "body_too_large"
    status = 413


class PromptTooLong(BadRequest):
    """The prompt has more tokens than the largest context of any instance of the model.

    `details` holds `n_prompt_tokens` and `n_ctx` if known. The code is the one that OpenAI uses, because clients
    match on it.
    """

    code = "context_length_exceeded"


class PreviousResponseNotFound(BadRequest):
    """The gateway does not have the response that `previous_response_id` names, or one before it.

    It keeps recent responses in memory. The code is the one that OpenAI uses, because clients match on it.
    """

    code = "previous_response_not_found"


class MaxTokensTooLarge(BadRequest):
    """The prompt fits, but `max_tokens` is more than the context has room for, or than the model can generate.

    `details` holds `max_tokens`, and `n_prompt_tokens` and `n_ctx` or else `limit`, if known.
    """

    code = "max_tokens_too_large"


class ConfigError(BadRequest):
    """A setting is unknown, has the wrong type, or contradicts another setting."""

    code = "invalid_config"


class AuthenticationFailed(CortexError):
    """The request has no API key, or an unknown one."""

    code = "authentication_failed"
    status = 401


class PermissionDenied(CortexError):
    """The key lacks the required scope, a foreign web page caused the request, or Host names another host."""

    code = "permission_denied"
    status = 403


class NotFound(CortexError):
    """Something that the request names does not exist."""

    code = "not_found"
    status = 404


class ItemNotFound(NotFound):
    """The gateway does not have the item of a conversation that a request refers to."""

    code = "item_not_found"


class ModelNotFound(NotFound):
    """No model config, alias or instance has this name."""

    code = "model_not_found"


class NodeNotFound(NotFound):
    """No node of the fleet has this name. The hint suggests the closest name, or lists all nodes."""

    code = "node_not_found"

    @classmethod
    def for_name(cls, name: str, nodes: Iterable[str]) -> NodeNotFound:
        """Create the error for an unknown node name, with the closest of the existing names as a hint."""
        known = tuple(nodes)
        close = nearest_names(name, known)
        hint = f"did you mean {close[0]!r}?" if close else f"nodes: {', '.join(known) or 'none'}"
        return cls(f"node {name!r} does not exist", hints=(hint,), details={"nearest": close})


class Conflict(CortexError):
    """The current state does not allow this operation."""

    code = "conflict"
    status = 409


class InstanceBusy(Conflict):
    """An instance still has requests in flight after its drain timeout. `details` names it as `instance`."""

    code = "instance_busy"

    @classmethod
    def after_drain(cls, instance: str, seconds: float) -> InstanceBusy:
        """Create the error for an instance that did not become idle within the drain timeout, in seconds."""
        return cls(
            f"instance {instance} still has requests in flight after {seconds:.0f} s",
            hints=("allow more time to drain, or cancel its requests",),
            retry_after=5.0,
            details={"instance": instance},
        )


class Cancelled(CortexError):
    """An operator cancelled the request.

    The status is one that the official SDKs do not retry automatically, unlike 409 and 5xx.
    """

    code = "cancelled"
    status = 400


class Busy(CortexError):
    """A limit on queue length, rate or concurrency is reached."""

    code = "busy"
    status = 429


class RateLimited(Busy):
    """The limits of the caller's key are used up."""

    code = "rate_limited"


class NotSupported(CortexError):
    """The engine that serves this model does not have this route or feature."""

    code = "not_supported"
    status = 501


class Unavailable(CortexError):
    """Nothing can serve this request at the moment."""

    code = "unavailable"
    status = 503


class NoHealthyNode(Unavailable):
    """No node that could serve the model responds, or all nodes that could load it are cordoned."""

    code = "no_healthy_node"


class ModelLoading(Unavailable):
    """The model is loading and will not be ready within the caller's deadline."""

    code = "model_loading"


class LoadFailed(Unavailable):
    """The engine could not load the model. The reason comes from the engine."""

    code = "load_failed"


class DoesNotFit(CortexError):
    """The devices lack the memory. `details` holds the numbers in MiB."""

    code = "does_not_fit"
    status = 507


class UpstreamFailed(CortexError):
    """An engine or a node closed the connection, or sent a response that can't be parsed."""

    code = "upstream_failed"
    status = 502


class UpstreamTimeout(UpstreamFailed):
    """An engine or a node did not respond in time."""

    code = "upstream_timeout"
    status = 504


def _subclasses(cls: type[CortexError]) -> Iterable[type[CortexError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from _subclasses(child)


ERRORS_BY_CODE: Mapping[str, type[CortexError]] = {
    cls.code: cls for cls in _subclasses(CortexError)
}
"""The error class of each code, for clients that receive an error over the wire."""

_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


def envelope(error: CortexError) -> dict[str, JsonValue]:
    """Return the body of an error response, in OpenAI's shape plus `hints` and `src`.

    `src` is "cortex" for errors that the gateway or a neuron created, which distinguishes them from an engine's errors:
    those are passed on unchanged. An engine's error that had to be rewritten has neither `src` nor `hints`.
    """
    body: dict[str, JsonValue] = {
        "message": error.message,
        "type": _OPENAI_TYPES.get(error.status, "server_error"),
        "param": error.param,
        "code": error.code,
        "src": "cortex",
        "hints": list(error.hints),
    }
    if "upstream_status" in error.details:
        del body["src"], body["hints"]
    return {"error": body | {k: v for k, v in error.details.items() if k not in body}}


def envelope_bytes(error: CortexError) -> bytes:
    """Return `envelope` as compact UTF-8 JSON."""
    return json.dumps(envelope(error), separators=(",", ":"), ensure_ascii=False).encode()


def from_envelope(body: bytes, status: int, call: str) -> CortexError:
    """Parse the error response of a gateway or neuron.

    Args:
        body: the response body, which can be anything.
        status: HTTP status of the response.
        call: the request, such as "GET /discovery"; part of the message if the body can't be parsed.
    """
    try:
        parsed = json.loads(body)["error"]
        message, code = str(parsed["message"])[:_MAX_PARSED_LENGTH], str(parsed["code"])
    except (ValueError, KeyError, TypeError, RecursionError):
        text = body[:200].decode("utf-8", "replace").strip()
        return UpstreamFailed(f"{call} returned {status}: {text or 'empty body'}")
    # "unreachable" describes a peer of the server that responded; this caller did reach that server.
    known = {"message", "type", "param", "code", "src", "hints", "unreachable"}
    cls = ERRORS_BY_CODE.get(code, UpstreamFailed)
    hints = parsed.get("hints")
    return cls(
        message,
        hints=tuple(str(h)[:_MAX_PARSED_LENGTH] for h in hints[:20])
        if isinstance(hints, list)
        else (),
        param=parsed.get("param"),
        details={k: v for k, v in parsed.items() if k not in known},
    )


_MAX_PARSED_LENGTH = 8000
_MAX_COMPARED_LENGTH = 128
_MAX_SCANNED_NAMES = 1000
_MAX_COMPARED_CELLS = 30_000
"""Product of the lengths of all pairs of names that are compared in full."""


def nearest_names(name: str, names: Iterable[str], *, limit: int = 3) -> tuple[str, ...]:
    """Return the existing names that a misspelled or abbreviated one could stand for, best match first.

    Names that contain the given one come first ("qwen3" for "Qwen/Qwen3-32B"), then similar ones, compared with and
    without the organization before the slash. The comparison takes milliseconds whatever the names are: a long name is
    not a typing mistake, and only the names that share the most letter pairs with the given one are compared in full.
    """
    if len(name) > _MAX_COMPARED_LENGTH:
        return ()
    names = _most_alike(name, [n for n in names if len(n) <= _MAX_COMPARED_LENGTH])
    lowered = {n.lower(): n for n in names}
    without_org = {n.rsplit("/", 1)[-1]: full for n, full in lowered.items()}
    wanted = name.lower()
    containing = [full for n, full in lowered.items() if len(wanted) > 2 and wanted in n]
    similar = difflib.get_close_matches(wanted, list(lowered), n=limit, cutoff=0.5)
    similar_tails = difflib.get_close_matches(
        wanted.rsplit("/", 1)[-1], list(without_org), n=limit, cutoff=0.6
    )
    matches = sorted(containing, key=len)
    matches += [lowered[n] for n in similar] + [without_org[n] for n in similar_tails]
    return tuple(dict.fromkeys(matches))[:limit]


def _most_alike(name: str, names: list[str]) -> list[str]:
    """Return the names to compare with `name`: all if there are few, else those that share the most letter pairs."""
    count = max(3, _MAX_COMPARED_CELLS // max(1, len(name) ** 2))
    if len(names) <= count:
        return names
    wanted = name.lower()
    pairs = set(itertools.pairwise(wanted))

    def likeness(other: str) -> tuple[bool, int]:
        lowered = other.lower()
        return wanted in lowered, len(pairs.intersection(itertools.pairwise(lowered)))

    return heapq.nlargest(count, names[:_MAX_SCANNED_NAMES], key=likeness)
