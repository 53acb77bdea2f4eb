"""Findings of checks: a verdict, what was found, and a hint. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cortex_cli.color import Tone
from cortex_cli.render.output_format import ListKind
from cortex_cli.render.table import Column


class Verdict(StrEnum):
    """Result of a check."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: name of the check.
        verdict: the result.
        message: what was found.
        hint: what to do; empty if there is nothing to do.
    """

    check: str
    verdict: Verdict
    message: str
    hint: str = ""


_MARKS = {Verdict.OK: "ok", Verdict.WARNING: "!", Verdict.ERROR: "x"}
_TONES = {Verdict.OK: Tone.GOOD, Verdict.WARNING: Tone.WARN, Verdict.ERROR: Tone.BAD}

FINDINGS: ListKind[Finding] = ListKind(
    kind="FindingList",
    columns=(
        Column("", lambda f: _MARKS[f.verdict], tone=lambda f: _TONES[f.verdict]),
        Column("CHECK", lambda f: f.check),
        Column("FOUND", lambda f: f.message),
        Column("HINT", lambda f: f.hint, tone=lambda _f: Tone.HINT),
    ),
    name=lambda f: f"{f.verdict}:{f.check}",
    empty_text="no checks",
)


def ok(check: str, message: str) -> Finding:
    """Return the finding of a successful check."""
    return Finding(check, Verdict.OK, message)


def warning(check: str, message: str, hint: str = "") -> Finding:
    """Return the finding of a check with a warning."""
    return Finding(check, Verdict.WARNING, message, hint)


def error(check: str, message: str, hint: str = "") -> Finding:
    """Return the finding of a failed check."""
    return Finding(check, Verdict.ERROR, message, hint)


def worst_verdict(findings: Iterable[Finding]) -> Verdict:
    """Return the worst verdict of findings."""
    order = list(Verdict)
    return max((f.verdict for f in findings), key=order.index, default=Verdict.OK)


def summary_line(findings: Sequence[Finding]) -> str:
    """Return the numbers of errors, warnings and successful checks."""
    errors = sum(f.verdict is Verdict.ERROR for f in findings)
    warnings = sum(f.verdict is Verdict.WARNING for f in findings)
    return f"{errors} errors, {warnings} warnings, {len(findings) - errors - warnings} ok"
