"""Checks of the host and the fleet. Pure except for `host_checks`."""

from __future__ import annotations

import re
import resource
import shutil
from pathlib import Path
from shlex import quote
from urllib.parse import urlsplit

from cortex_cli.doctor.findings import Finding, error, ok, warning
from cortex_common.net.tls import PEER_EXPIRED
from cortex_common.schema.certificates import RENEW_HINT
from cortex_common.schema.fleet import FleetSnapshot, ModelState, NodeState, NodeView, SettingsView
from cortex_common.schema.hardware import DeviceHealth
from cortex_common.units import format_duration, format_mib

_MAX_SILENCE_S = 30.0
_MIN_OPEN_FILES = 4096
_MIN_FREE_DISK_BYTES = 5 * 1024**3


def host_checks(weights: Path) -> list[Finding]:
    """Check the limits and the disk of this host.

    Args:
        weights: directory whose disk holds model weights.
    """
    # The hard limit: a gateway raises its soft limit to it.
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = shutil.disk_usage(weights).free
    return [
        ok("open files", f"{files} allowed")
        if files >= _MIN_OPEN_FILES
        else warning(
            "open files",
            f"only {files} allowed; each stream of a gateway needs two",
            "raise LimitNOFILE in the unit, or the limit of `ulimit -Hn`",
        ),
        ok("disk", f"{format_mib(free / 1024**2)} free on {weights}")
        if free >= _MIN_FREE_DISK_BYTES
        else warning(
            "disk", f"{format_mib(free / 1024**2)} free on {weights}", "free disk space for weights"
        ),
    ]


def fleet_checks(fleet: FleetSnapshot, version: str) -> list[Finding]:
    """Check the fleet as reported by its gateway.

    Args:
        fleet: the snapshot.
        version: version of this command.
    """
    found = [_versions(fleet, version), *_settings(fleet.settings, fleet.at)]
    found += [warning("gateway", text, "see the gateway's log") for text in fleet.warnings]
    if not fleet.nodes:
        found.append(
            error("nodes", "the gateway has no nodes", "add them to cortex.toml under [[neurons]]")
        )
    for node in fleet.nodes:
        found += _node(node, fleet.at)
    found += _certificates(fleet)
    found += _models(fleet)
    return found


def _versions(fleet: FleetSnapshot, version: str) -> Finding:
    versions = {"gateway": fleet.gateway_version} | {n.name: n.neuron_version for n in fleet.nodes}
    others = {name: v for name, v in versions.items() if v and v != version}
    if not others:
        return ok("versions", f"{version} everywhere")
    text = ", ".join(f"{name} has {v}" for name, v in others.items())
    return warning(
        "versions", f"this command has {version}; {text}", "update all components to one version"
    )


def _settings(settings: SettingsView, now: float) -> list[Finding]:
    found: list[Finding] = []
    if settings.reload_error:
        age = format_duration(max(0.0, now - settings.read_at))
        reason, *_ = settings.reload_error.splitlines()
        message = f"the gateway uses the settings of {age} ago: {reason}"
        hint = "fix the file, which is then reloaded; a gateway would not start with it"
        found.append(error("settings", message, hint))
    if settings.restart:
        message = f"changed but not effective yet: {', '.join(settings.restart)}"
        found.append(warning("settings", message, "restart the gateway"))
    return found


def _node(node: NodeView, now: float) -> list[Finding]:
    name = f"node {node.name}"
    if node.state is not NodeState.UP:
        return [
            error(
                name, f"{node.state.value}: {node.reason or 'no response'}", unreachable_hint(node)
            )
        ]
    found: list[Finding] = []
    silent = now - node.seen_at
    if silent > _MAX_SILENCE_S:
        hint = "the node or the network is overloaded, or the clocks differ"
        found.append(warning(name, f"silent for {format_duration(silent)}", hint))
    found += [warning(name, text) for text in node.warnings]
    for device in node.devices:
        if device.health is DeviceHealth.LOST:
            hint = "look for Xid errors in the kernel log; the host might need a restart"
            found.append(error(f"device {node.name}/{device.index}", device.reason or "lost", hint))
    if not node.devices and not node.upstream:
        hint = "is the driver loaded? to use its RAM, set [cpu] offer = true"
        found.append(warning(name, "has no device", hint))
    if node.cordoned:
        found.append(warning(name, "is cordoned", f"`cortex nodes uncordon {node.name}`"))
    return found or [ok(name, f"devices: {len(node.devices)}, instances: {len(node.instances)}")]


def _certificates(fleet: FleetSnapshot) -> list[Finding]:
    found: list[Finding] = []
    for node, certificates in fleet.all_certificates:
        for certificate in certificates:
            if message := certificate.problem(fleet.at):
                unusable = certificate.has_expired(fleet.at) or certificate.reload_error
                severity = error if unusable else warning
                check = f"certificate of {node or 'the gateway'}"
                found.append(severity(check, message, RENEW_HINT))
    expiries = sorted(c.expires for _, certificates in fleet.all_certificates for c in certificates)
    if expiries and not found:
        found.append(ok("certificates", f"{len(expiries)}, the first expires on {expiries[0]}"))
    return found


_UNREACHABLE_HINTS: tuple[tuple[str, str], ...] = (
    (
        "Hostname mismatch|IP address mismatch",
        "`endpoint` must use a name that the certificate contains",
    ),
    (PEER_EXPIRED, RENEW_HINT),
    ("not yet valid", "are both clocks right?"),
    ("CERTIFICATE_REQUIRED", "it requires a client certificate: set `certificate` under {table}"),
    (
        "ALERT_UNKNOWN_CA",
        "`client_ca` of the neuron must be the authority of the gateway's certificate",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "set `ca` under {table} to the authority that signed its certificate",
    ),
    (
        "WRONG_VERSION_NUMBER",
        "it uses plain HTTP: use http:// in `endpoint`, or configure [tls] there",
    ),
    ("disconnected without sending", "does it use TLS? then use https:// in `endpoint`"),
    (
        "token of this neuron|needs its token",
        "use the same token on both sides: `token_file` in its neuron.toml and under {table}",
    ),
    (
        "returned 401|returned 403",
        "set `key_file` under {table} to the file of a key that it accepts",
    ),
    (
        "name resolution|Name or service|nodename nor|No address associated",
        "the host name {host} is unknown: correct `endpoint`, or use an IP address",
    ),
    (
        "timed out|in time|silent",
        "is the host up? a firewall might drop packets to {host}: try `{curl}` on the gateway's host",
    ),
    (
        "returned 404|there is no /events",
        "another server listens there: is the port of `endpoint` correct?",
    ),
    (
        "No route to host|Network is unreachable",
        "there is no route to {host}: try `ping {host}` on the gateway's host",
    ),
    (
        "refused|ended its event stream",
        "nothing listens on that address: {start}, and check its `listen` setting",
    ),
)
"""Patterns of the reason, and the hint for each; the first match applies."""


def unreachable_hint(node: NodeView) -> str:
    """Return what to do about an unreachable node, by the reason that the gateway reports."""
    reason = node.reason or ""
    host = urlsplit(node.endpoint).hostname or node.endpoint
    curl = f"curl {node.endpoint}{'/v1/models' if node.upstream else '/health'}"
    start = "start the server" if node.upstream else f"`systemctl status neuron` on {node.name}"
    hint = next(
        (hint for pattern, hint in _UNREACHABLE_HINTS if re.search(pattern, reason)),
        "is {what} running? try `{curl}` on the gateway's host",
    )
    if node.upstream:
        hint = hint.replace("`endpoint`", "`base_url`")
    return hint.format(
        host=host,
        curl=curl,
        start=start,
        what="the server" if node.upstream else "its neuron",
        table="[[upstreams]]" if node.upstream else "[[neurons]]",
    )


def _models(fleet: FleetSnapshot) -> list[Finding]:
    if not fleet.models:
        return [warning("models", "the catalogue is empty", "add a model to models.toml")]
    failed = [m for m in fleet.models if m.state is ModelState.FAILED]
    found = [
        error(f"model {m.id}", m.error or "failed", f"`cortex models load {quote(m.id)}` retries")
        for m in failed
    ]
    harnesses = {h for n in fleet.nodes for h in n.harnesses}
    if harnesses:
        harnesses |= {i.harness for i in fleet.instances()}
    found += [
        warning(
            f"model {m.id}",
            f"no node has the harness {m.harness}",
            "add it to [[harnesses]] of a neuron.toml",
        )
        for m in fleet.models
        if m.harness and harnesses and m.harness not in harnesses
    ]
    return found or [ok("models", f"{len(fleet.models)}, none failed")]
