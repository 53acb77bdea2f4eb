"""Every error that cortex reports, as one tree.

Split by what the caller can do about it::

    CortexError                      500  internal_error      report it
    ├── BadRequest                   400  invalid_request     change the request
    │   ├── MalformedBody            400  malformed_body
    │   ├── MissingModel             400  missing_model
    │   ├── BodyTooLarge             413  body_too_large
    │   ├── PromptTooLong            400  context_length_exceeded  shorten it, or use a larger context
    │   └── ConfigError              400  invalid_config      change the file or the variable
    ├── AuthenticationFailed         401  authentication_failed   send a (valid) key
    ├── PermissionRefused            403  permission_refused      use a key with that scope
    ├── NotFound                     404  not_found           name something that exists
    │   ├── ModelNotFound            404  model_not_found
    │   └── NodeNotFound             404  node_not_found
    ├── Conflict                     409  conflict            look at the state, then decide
    │   └── StillBusy                409  still_busy          allow its requests longer, or cancel them
    ├── Cancelled                    400  cancelled           nothing: an operator ended the request
    ├── Busy                         429  busy                wait (`retry_after`), then repeat
    │   └── RateLimited              429  rate_limited        the same, or ask for a key with higher limits
    ├── NotSupported                 501  not_supported       use another model or engine
    ├── Unavailable                  503  unavailable         wait (`retry_after`), or mend the fleet
    │   ├── NoHealthyNode            503  no_healthy_node
    │   ├── ModelLoading             503  model_loading
    │   └── LoadFailed               503  load_failed
    ├── DoesNotFit                   507  does_not_fit        free memory or choose a smaller model
    └── UpstreamFailed               502  upstream_failed     the engine or node failed, not the request
        └── UpstreamTimeout          504  upstream_timeout

The `code` of a class never changes once released: clients match on it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

JsonValue = Any
"""A value that json.dumps takes; details of an error are such values."""


class CortexError(Exception):
    """Base of all errors that reach a user.

    Args:
        message: one sentence without a final full stop that says what is wrong.
        hints: what to do about it, each a sentence or a command to paste.
        param: the field of the request or setting that is at fault.
        retry_after: seconds after which a repeat makes sense.
        details: further keys of the error object on the wire (numbers, names, states).
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
    """The request can't be served as it stands."""

    code = "invalid_request"
    status = 400


class MalformedBody(BadRequest):
    """The body is not the JSON object that the route expects."""

    code = "malformed_body"


class MissingModel(BadRequest):
    """The body names no model."""

    code = "missing_model"


class BodyTooLarge(BadRequest):
    """The body is over the limit of the gateway."""

    code = "body_too_large"
    status = 413


class PromptTooLong(BadRequest):
    """The prompt has more tokens than any instance of the model has context.

    `details` carry `n_prompt_tokens` and `n_ctx` where they are known. The code is OpenAI's own, which
    clients match on.
    """

    code = "context_length_exceeded"


class ConfigError(BadRequest):
    """A setting is unknown, of the wrong type, or contradicts another."""

    code = "invalid_config"


class AuthenticationFailed(CortexError):
    """No key, or none that is known."""

    code = "authentication_failed"
    status = 401


class PermissionRefused(CortexError):
    """The key is known but does not carry the scope."""

    code = "permission_refused"
    status = 403


class NotFound(CortexError):
    """What the request names does not exist."""

    code = "not_found"
    status = 404


class ModelNotFound(NotFound):
    """No profile, no alias and no instance has this name."""

    code = "model_not_found"


class NodeNotFound(NotFound):
    """No node of the fleet has this name; the hint is the one that may have been meant, or the names of all."""

    code = "node_not_found"

    @classmethod
    def among(cls, name: str, nodes: Iterable[str]) -> NodeNotFound:
        """The error for a name that none of the nodes has, with the one that may have been meant."""
        known = tuple(nodes)
        close = nearest(name, known)
        hint = f"did you mean {close[0]!r}?" if close else f"nodes: {', '.join(known) or 'none'}"
        return cls(f"there is no node {name!r}", hints=(hint,), details={"nearest": close})


class Conflict(CortexError):
    """The state is not one in which this can be done."""

    code = "conflict"
    status = 409


class StillBusy(Conflict):
    """An instance had requests under way for longer than it may take to drain; details name it as `instance`."""

    code = "still_busy"

    @classmethod
    def after(cls, instance: str, seconds: float) -> StillBusy:
        """The error for an instance that was given so many seconds."""
        return cls(
            f"instance {instance} still answers requests after {seconds:.0f} s",
            hints=("allow it longer, or cancel its requests",),
            retry_after=5.0,
            details={"instance": instance},
        )


class Cancelled(CortexError):
    """An operator ended the request.

    A status that official SDKs do not repeat on their own, as they do 409 and 5xx.
    """

    code = "cancelled"
    status = 400


class Busy(CortexError):
    """A bound (queue, rate, concurrency) is reached."""

    code = "busy"
    status = 429


class RateLimited(Busy):
    """The caller's key has used what it may."""

    code = "rate_limited"


class NotSupported(CortexError):
    """The engine behind this model has no such route or feature."""

    code = "not_supported"
    status = 501


class Unavailable(CortexError):
    """Nothing can serve this now."""

    code = "unavailable"
    status = 503


class NoHealthyNode(Unavailable):
    """No node that could serve the model answers, or those that could load it are cordoned."""

    code = "no_healthy_node"


class ModelLoading(Unavailable):
    """The model is on its way, but not within the caller's deadline."""

    code = "model_loading"


class LoadFailed(Unavailable):
    """The engine could not load the model; the reason is the engine's."""

    code = "load_failed"


class DoesNotFit(CortexError):
    """The devices do not have the memory; details carry the numbers in MiB."""

    code = "does_not_fit"
    status = 507


class UpstreamFailed(CortexError):
    """An engine or a node broke off or answered what can't be understood."""

    code = "upstream_failed"
    status = 502


class UpstreamTimeout(UpstreamFailed):
    """An engine or a node did not answer in time."""

    code = "upstream_timeout"
    status = 504


def _tree(cls: type[CortexError]) -> Iterable[type[CortexError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from _tree(child)


BY_CODE: Mapping[str, type[CortexError]] = {cls.code: cls for cls in _tree(CortexError)}
"""The error class of each code, for clients that get one over the wire."""

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
    """The body of an error answer, in OpenAI's shape plus `hints` and `src`.

    `src` is "cortex" for errors that the gateway or a neuron made, so that a client can tell
    them from an engine's, which are passed on as they came; one that had to be said anew has neither.
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
    """`envelope` as compact UTF-8 JSON."""
    return json.dumps(envelope(error), separators=(",", ":"), ensure_ascii=False).encode()


def from_envelope(body: bytes, status: int, what: str) -> CortexError:
    """The error that an answer of a gateway or neuron carries.

    Args:
        body: the answer's body, whatever it is.
        status: the answer's HTTP status.
        what: names the call for the message when the body says nothing, like "GET /discovery".
    """
    try:
        found = json.loads(body)["error"]
        message, code = str(found["message"]), str(found["code"])
    except (ValueError, KeyError, TypeError, RecursionError):
        text = body[:200].decode("utf-8", "replace").strip()
        return UpstreamFailed(f"{what} answered {status}: {text or 'no body'}")
    # Whom the one that answered could not reach is no concern of this caller, who did reach somebody.
    known = {"message", "type", "param", "code", "src", "hints", "unreachable"}
    cls = BY_CODE.get(code, UpstreamFailed)
    hints = found.get("hints")
    return cls(
        message,
        hints=tuple(map(str, hints)) if isinstance(hints, list) else (),
        param=found.get("param"),
        details={k: v for k, v in found.items() if k not in known},
    )


def nearest(name: str, names: Iterable[str], *, most: int = 3) -> tuple[str, ...]:
    """The known names that a mistyped or shortened one may stand for, best first.

    Names that contain the whole of what was asked come first ("qwen3" for "Qwen/Qwen3-32B"), then those that look
    alike, with or without the organisation before the slash.
    """
    lowered = {n.lower(): n for n in names}
    short = {n.rsplit("/", 1)[-1]: full for n, full in lowered.items()}
    asked = name.lower()
    containing = [full for n, full in lowered.items() if len(asked) > 2 and asked in n]
    alike = difflib.get_close_matches(asked, list(lowered), n=most, cutoff=0.5)
    tail = difflib.get_close_matches(asked.rsplit("/", 1)[-1], list(short), n=most, cutoff=0.6)
    found = sorted(containing, key=len) + [lowered[n] for n in alike] + [short[n] for n in tail]
    return tuple(dict.fromkeys(found))[:most]
