"""The directory that a daemon keeps its state in: made where it is missing, and held by one of its kind at a time."""

from __future__ import annotations

import os
from pathlib import Path

from cortex_common.errors import ConfigError, Conflict


def held(directory: Path, daemon: str) -> int:
    """Take a directory; it is held until the descriptor that this returns is closed, or the process ends.

    A gateway and a neuron may share one: no file of theirs has the same name.

    Args:
        directory: is made where it is missing.
        daemon: "gateway" or "neuron", as its section of the settings is called.

    Raises:
        ConfigError: it can't be made, or written.
        Conflict: another process of that kind holds it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / f"{daemon}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as failed:
        raise unusable(directory, daemon, failed) from failed
    try:
        os.lockf(lock, os.F_TLOCK, 0)
    except OSError as failed:
        os.close(lock)
        raise Conflict(
            f"another {daemon} uses {directory}",
            hints=("stop it, or give this one a state_dir of its own",),
        ) from failed
    return lock


def unusable(path: Path, daemon: str, failed: OSError) -> ConfigError:
    """The error for a state directory, or a file in it, that can't be used."""
    return ConfigError(
        f"can't use {path}: {failed.strerror or failed}",
        hints=(f"set state_dir in [{daemon}], or CORTEX_{daemon.upper()}__STATE_DIR",),
    )
