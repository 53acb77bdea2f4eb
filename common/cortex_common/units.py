"""Parsing and formatting of sizes in MiB and durations in seconds."""

from __future__ import annotations

import re

BYTES_PER_MIB = 1024 * 1024

DURATION_PATTERN = r"^\s*(\d+(\.\d+)?|(\d+(\.\d+)?\s*([mM][sS]|[smhdwSMHDW])\s*)+)\s*$"
"""The strings that `parse_duration` accepts, for JSON schemas."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(b|kib|mib|gib|tib|kb|mb|gb|tb|k|m|g|t)?", re.IGNORECASE)
_MAX_SIZE_BYTES = 2.0**60
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


def bytes_to_mib(size_bytes: int) -> int:
    """Convert bytes to whole MiB, rounded up because a load that is one byte short fails."""
    return -(-size_bytes // BYTES_PER_MIB)


def parse_duration(text: str) -> float:
    """Parse a duration such as "90", "1.5s", "2h" or "1h30m" into seconds.

    Raises:
        ValueError: the text is not a duration.
    """
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not text or _DURATION.sub("", text).strip():
        raise ValueError(f"{text!r} is not a duration like 90s, 5m or 1h30m")
    return sum(float(n) * _SECONDS[unit.lower()] for n, unit in _DURATION.findall(text))


def parse_size(text: str) -> int:
    """Parse a size such as "4096", "64MiB", "2 GiB" or "10GB" into bytes; KB, MB, GB and TB are decimal.

    Raises:
        ValueError: the text is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size like 64MiB or 2GiB")
    size = float(match[1]) * _SIZE_BYTES[(match[2] or "b").lower()]
    if size > _MAX_SIZE_BYTES:
        raise ValueError(f"{text[:40]!r} is more than an exbibyte")
    return int(size)


def format_mib(size_mib: float | None) -> str:
    """Format MiB for people: "812M", "18.6G", or "–" if unknown."""
    if size_mib is None:
        return "–"
    if size_mib < 1000:
        return f"{size_mib:.0f}M"
    gib = size_mib / 1024
    return f"{gib:.1f}G" if gib < 1000 else f"{gib / 1024:.1f}T"


def format_duration(seconds: float | None) -> str:
    """Format seconds for people: "0.8s", "42s", "3m10s", "2h05m", "4d3h", or "–" if unknown."""
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
