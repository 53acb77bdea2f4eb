"""What may be wrong, as ordered checks with a verdict and a way out each. Pure but for `host_checks`."""

from __future__ import annotations

import re
import resource
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from shlex import quote
from urllib.parse import urlsplit

from cortex_cli.color import Tone
from cortex_cli.output import Kind
from cortex_cli.render.table import Column
from cortex_common.net.tls import PEER_EXPIRED
from cortex_common.schema.certificates import RENEW_HINT
from cortex_common.schema.fleet import FleetSnapshot, ModelState, NodeState, NodeView, SettingsView
from cortex_common.schema.hardware import DeviceHealth
from cortex_common.units import format_duration, format_mib

_SILENT_S = 30.0
_LEAST_FILES = 4096
_LEAST_DISK_BYTES = 5 * 1024**3


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check.

    Attributes:
        hint: what to do; empty where nothing is.
    """

    check: str
    verdict: Verdict
    about: str
    hint: str = ""


_MARKS = {Verdict.OK: "ok", Verdict.WARNING: "!", Verdict.ERROR: "x"}
_TONES = {Verdict.OK: Tone.GOOD, Verdict.WARNING: Tone.WARN, Verdict.ERROR: Tone.BAD}

FINDINGS: Kind[Finding] = Kind(
    kind="FindingList",
    columns=(
        Column("", lambda f: _MARKS[f.verdict], tone=lambda f: _TONES[f.verdict]),
        Column("CHECK", lambda f: f.check),
        Column("FOUND", lambda f: f.about),
        Column("HINT", lambda f: f.hint, tone=lambda _f: Tone.HINT),
    ),
    name=lambda f: f"{f.verdict}:{f.check}",
    nothing="nothing was checked",
)


def ok(check: str, about: str) -> Finding:
    """A check that found nothing wrong."""
    return Finding(check, Verdict.OK, about)


def warning(check: str, about: str, hint: str = "") -> Finding:
    """A check that found something worth a look."""
    return Finding(check, Verdict.WARNING, about, hint)


def error(check: str, about: str, hint: str = "") -> Finding:
    """A check that found something broken."""
    return Finding(check, Verdict.ERROR, about, hint)


def worst(findings: Iterable[Finding]) -> Verdict:
    """The worst verdict among findings."""
    order = list(Verdict)
    return max((f.verdict for f in findings), key=order.index, default=Verdict.OK)


def host_checks(weights: Path) -> list[Finding]:
    """This host: limits and disk.

    Args:
        weights: directory whose disk holds model weights.
    """
    # A gateway takes as many as it may.
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = shutil.disk_usage(weights).free
    return [
        ok("open files", f"{files} allowed")
        if files >= _LEAST_FILES
        else warning(
            "open files",
            f"only {files} allowed; each stream of a gateway takes two",
            "raise LimitNOFILE in the unit, or ulimit -Hn",
        ),
        ok("disk", f"{format_mib(free / 1024**2)} free on {weights}")
        if free >= _LEAST_DISK_BYTES
        else warning(
            "disk", f"{format_mib(free / 1024**2)} free on {weights}", "make room for weights"
        ),
    ]


def fleet_checks(fleet: FleetSnapshot, version: str) -> list[Finding]:
    """The fleet as its gateway tells it.

    Args:
        fleet: the snapshot.
        version: of this command.
    """
    found = [_versions(fleet, version), *_settings(fleet.settings, fleet.at)]
    if not fleet.nodes:
        found.append(
            error("nodes", "the gateway knows none", "name them under [[neurons]] in cortex.toml")
        )
    for node in fleet.nodes:
        found += _node(node, fleet.at)
    found += _certificates(fleet)
    found += _models(fleet)
    return found


def _versions(fleet: FleetSnapshot, version: str) -> Finding:
    told = {"gateway": fleet.gateway_version} | {n.name: n.neuron_version for n in fleet.nodes}
    others = {name: v for name, v in told.items() if v and v != version}
    if not others:
        return ok("versions", f"{version} everywhere")
    text = ", ".join(f"{name} has {v}" for name, v in others.items())
    return warning("versions", f"this command has {version}; {text}", "update them together")


def _settings(settings: SettingsView, now: float) -> list[Finding]:
    found: list[Finding] = []
    if settings.reload_error:
        age = format_duration(max(0.0, now - settings.read_at))
        reason, *_ = settings.reload_error.splitlines()
        about = f"the gateway runs by what it read {age} ago: {reason}"
        hint = "mend the file, which is then read by itself; a gateway that starts would refuse it"
        found.append(error("settings", about, hint))
    if settings.restart:
        about = f"changed, and not in force yet: {', '.join(settings.restart)}"
        found.append(warning("settings", about, "restart the gateway"))
    return found


def _node(node: NodeView, now: float) -> list[Finding]:
    name = f"node {node.name}"
    if node.state is not NodeState.UP:
        return [error(name, f"{node.state.value}: {node.reason or 'no answer'}", way_to(node))]
    found: list[Finding] = []
    silent = now - node.seen_at
    if silent > _SILENT_S:
        hint = "the node or the network is overloaded, or the clocks differ"
        found.append(warning(name, f"silent for {format_duration(silent)}", hint))
    found += [warning(name, text) for text in node.warnings]
    for device in node.devices:
        if device.health is DeviceHealth.LOST:
            hint = "look into the kernel's log for Xid; the host may need a restart"
            found.append(error(f"device {node.name}/{device.index}", device.reason or "lost", hint))
    if not node.devices and not node.upstream:
        hint = "is the driver loaded? [cpu] offer = true offers its RAM"
        found.append(warning(name, "offers no device", hint))
    if node.cordoned:
        found.append(warning(name, "is cordoned", f"`cortex nodes uncordon {node.name}`"))
    return found or [ok(name, f"devices: {len(node.devices)}, instances: {len(node.instances)}")]


def _certificates(fleet: FleetSnapshot) -> list[Finding]:
    found: list[Finding] = []
    for node, certificates in fleet.all_certificates:
        for certificate in certificates:
            if about := certificate.problem(fleet.at):
                over = certificate.has_expired(fleet.at) or certificate.reload_error
                told = error if over else warning
                check = f"certificate of {node or 'the gateway'}"
                found.append(told(check, about, RENEW_HINT))
    ends = sorted(c.expires for _, certificates in fleet.all_certificates for c in certificates)
    if ends and not found:
        found.append(ok("certificates", f"{len(ends)}, the first ends on {ends[0]}"))
    return found


_WAYS: tuple[tuple[str, str], ...] = (
    (
        "Hostname mismatch|IP address mismatch",
        "`endpoint` must say a name that the certificate has",
    ),
    (PEER_EXPIRED, RENEW_HINT),
    ("not yet valid", "are both clocks right?"),
    ("CERTIFICATE_REQUIRED", "it asks for a certificate: name one as `certificate` under {table}"),
    (
        "ALERT_UNKNOWN_CA",
        "`client_ca` over there must be the authority of the gateway's certificate",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "`ca` under {table} names the authority that its certificate is from",
    ),
    (
        "WRONG_VERSION_NUMBER",
        "it speaks plain HTTP: its `endpoint` begins with http://, or it needs a [tls]",
    ),
    ("disconnected without sending", "does it speak TLS? then its `endpoint` begins with https://"),
    (
        "token of this neuron|needs its token",
        "give both the same text: `token_file` in its neuron.toml and under {table}",
    ),
    ("returned 401|returned 403", "`key_file` under {table} names the file of a key that it takes"),
    (
        "name resolution|Name or service|nodename nor|No address associated",
        "no name server knows {host}: mend `endpoint`, or say its address",
    ),
    (
        "timed out|in time|silent",
        "is the host up? a firewall may drop what goes to {host}: `{curl}` from the gateway's host",
    ),
    (
        "returned 404|there is no /events",
        "something else listens there: is the port of `endpoint` the right one?",
    ),
    (
        "No route to host|Network is unreachable",
        "the network has no way to {host}: `ping {host}` from the gateway's host",
    ),
    (
        "refused|ended its event stream",
        "nothing listens there: {start}; does it listen on that address?",
    ),
)
"""What a reason says, as alternatives, and what to do about it; the first that fits counts."""


def way_to(node: NodeView) -> str:
    """What to do about a node that can't be reached, by the reason that its gateway tells."""
    reason = node.reason or ""
    host = urlsplit(node.endpoint).hostname or node.endpoint
    curl = f"curl {node.endpoint}{'/v1/models' if node.upstream else '/health'}"
    start = "start it" if node.upstream else f"`systemctl status neuron` on {node.name}"
    way = next(
        (way for said, way in _WAYS if re.search(said, reason)),
        "is {what} running? `{curl}` from the gateway's host",
    )
    if node.upstream:
        way = way.replace("`endpoint`", "`base_url`")
    return way.format(
        host=host,
        curl=curl,
        start=start,
        what="it" if node.upstream else "its neuron",
        table="[[upstreams]]" if node.upstream else "[[neurons]]",
    )


def _models(fleet: FleetSnapshot) -> list[Finding]:
    if not fleet.models:
        return [warning("models", "the catalogue is empty", "describe one in models.toml")]
    failed = [m for m in fleet.models if m.state is ModelState.FAILED]
    found = [
        error(
            f"model {m.id}", m.error or "failed", f"`cortex models load {quote(m.id)}` tries again"
        )
        for m in failed
    ]
    served = {h for n in fleet.nodes for h in n.harnesses}
    if served:
        served |= {i.harness for i in fleet.instances()}
    found += [
        warning(f"model {m.id}", f"no node has the harness {m.harness}", "name it in a neuron.toml")
        for m in fleet.models
        if m.harness and served and m.harness not in served
    ]
    return found or [ok("models", f"{len(fleet.models)}, none failed")]


def counted(findings: Sequence[Finding]) -> str:
    """How many of which, for the last line."""
    wrong = sum(f.verdict is Verdict.ERROR for f in findings)
    doubtful = sum(f.verdict is Verdict.WARNING for f in findings)
    return f"{wrong} errors, {doubtful} warnings, {len(findings) - wrong - doubtful} ok"
