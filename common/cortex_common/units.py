"""Sizes in MiB and durations in seconds: how people write them and how we show them."""

from __future__ import annotations

import re

BYTES_PER_MIB = 1024 * 1024

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
DURATION_PATTERN = r"^\s*(\d+(\.\d+)?|(\d+(\.\d+)?\s*([mM][sS]|[smhdwSMHDW])\s*)+)\s*$"
"""What `parse_duration` takes, for JSON schemas."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(b|kib|mib|gib|tib|kb|mb|gb|tb|k|m|g|t)?", re.IGNORECASE)
_SIZE_BYTES = {
    "b": 1,
    "k": 1024,
    "kib": 1024,
    "m": 1024**2,
    "mib": 1024**2,
    "g": 1024**3,
    "gib": 1024**3,
    "t": 1024**4,
    "tib": 1024**4,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
}


def mib(size_bytes: int) -> int:
    """Bytes as whole MiB, rounded up: a byte too few is a load that fails."""
    return -(-size_bytes // BYTES_PER_MIB)


def parse_duration(text: str) -> float:
    """Seconds from "90", "1.5s", "2h" or "1h30m".

    Raises:
        ValueError: the text is no duration.
    """
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not text or _DURATION.sub("", text).strip():
        raise ValueError(f"{text!r} is not a duration like 90s, 5m or 1h30m")
    return sum(float(n) * _SECONDS[unit.lower()] for n, unit in _DURATION.findall(text))


def parse_size(text: str) -> int:
    """Bytes from "4096", "64MiB", "2 GiB" or "10GB" (decimal with B alone after the letter).

    Raises:
        ValueError: the text is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size like 64MiB or 2GiB")
    return int(float(match[1]) * _SIZE_BYTES[(match[2] or "b").lower()])


def show_mib(size_mib: float | None) -> str:
    """MiB as people read them: "812M", "18.6G", "–" for unknown."""
    if size_mib is None:
        return "–"
    if size_mib < 1000:
        return f"{size_mib:.0f}M"
    gib = size_mib / 1024
    return f"{gib:.1f}G" if gib < 1000 else f"{gib / 1024:.1f}T"


def show_duration(seconds: float | None) -> str:
    """Seconds as people read them: "0.8s", "42s", "3m10s", "2h05m", "4d3h"; "–" for unknown."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"
