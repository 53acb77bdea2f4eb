"""The part of `cortex doctor` that reports who can use which listener of this installation. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cortex_cli.doctor.findings import Finding, ok, warning
from cortex_common.config.base import split_host_port
from cortex_common.schema.fleet import FleetSnapshot
from cortex_common.schema.keys import KeyView, Scope

_CREATE = "`cortex keys create NAME --scope {}`"


def access_findings(
    settings: Mapping[str, Any], keys: Iterable[KeyView], fleet: FleetSnapshot
) -> Iterator[Finding]:
    """Yield a finding for each listener: who can use it.

    Args:
        settings: effective settings of the gateway by dotted key.
        keys: its keys.
        fleet: its nodes.
    """
    scopes = {scope for key in keys if not key.expired for scope in key.scopes}
    protected = {scope for key in keys for scope in key.scopes}
    encrypted = settings.get("tls.certificate") is not None
    insecure = bool(settings.get("gateway.insecure"))
    listeners = (
        ("inference", "gateway.listen", Scope.INFER),
        ("metrics", "gateway.metrics_listen", Scope.METRICS),
    )
    for name, setting, scope in listeners:
        address = settings.get(setting)
        if address is not None:
            yield _listener(
                f"access to {name}",
                address,
                scope,
                has_key=scope in protected,
                insecure=insecure,
                encrypted=encrypted,
            )
    yield _operator_api(settings["gateway.listen"], scopes, encrypted=encrypted)
    origins = settings.get("gateway.allowed_origins") or ()
    if "*" in origins:
        hint = "list the origins of your pages in allowed_origins of [gateway] instead"
        yield warning("access of web pages", "every page can send requests to the gateway", hint)
    yield from _nodes(fleet)


def _listener(
    check: str, address: str, scope: Scope, *, has_key: bool, insecure: bool, encrypted: bool
) -> Finding:
    local = _is_loopback(address)
    where = f"programs on this host ({address})" if local else f"all hosts that reach {address}"
    create = f"create a key with {_CREATE.format(scope)}"
    if insecure:
        return warning(check, f"without a key, for {where}", "remove insecure from [gateway]")
    if not has_key:
        return ok(
            check,
            f"without a key, for programs on the gateway's host ({address}) and the clients of a proxy there, "
            f"until you {create}",
        )
    if not local and not encrypted:
        hint = "set [tls], or use a private network such as WireGuard"
        return warning(check, f"with a key, for {where}, unencrypted", hint)
    return ok(check, f"with a key, for {where}")


def _operator_api(address: str, scopes: set[Scope], *, encrypted: bool) -> Finding:
    check = "access to operations"
    socket = "without a key, for root and the gateway's user on its host"
    if Scope.OPERATOR not in scopes:
        return ok(check, f"{socket}; with a key, for no one: no valid key has the scope operator")
    if _is_loopback(address) or encrypted:
        return ok(check, f"{socket}; with an operator key, for all that reach {address}")
    hint = "set [tls], or use a private network such as WireGuard"
    return warning(check, f"{socket}; with an operator key, unencrypted on {address}", hint)


def _nodes(fleet: FleetSnapshot) -> Iterator[Finding]:
    for node in fleet.nodes:
        if node.upstream:
            continue
        check = f"access to node {node.name}"
        host = node.endpoint.partition("://")[2]
        if node.endpoint.startswith("http:") and not _is_loopback(_with_port(host)):
            hint = "set [tls] in neuron.toml, or use a private network such as WireGuard"
            yield warning(check, f"with its token, which is sent unencrypted to {host}", hint)
        else:
            yield ok(check, "with its token")
        if node.keyless_harnesses:
            names = ", ".join(node.keyless_harnesses)
            yield warning(
                f"access to engines of {node.name}",
                f"every program on the node can use those of {names}, around keys and limits",
                "these engines take no key: let no one else log in to the node",
            )


def _with_port(host: str) -> str:
    return host if ":" in host.rpartition("]")[2] else f"{host}:80"


def _is_loopback(address: str) -> bool:
    try:
        host, _ = split_host_port(address.partition("/")[0])
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
