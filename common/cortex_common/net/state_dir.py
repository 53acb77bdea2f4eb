"""The state directory of a daemon: created if missing, and locked by one process of each kind."""

from __future__ import annotations

import os
from pathlib import Path

from cortex_common.errors import ConfigError, Conflict


def lock_state_dir(directory: Path, daemon: str) -> int:
    """Create and lock a state directory, and return the file descriptor that holds the lock.

    The lock is held until the descriptor is closed or the process ends. A gateway and a neuron can share a directory,
    because their file names differ.

    Args:
        directory: created if missing.
        daemon: "gateway" or "neuron", the name of its section in the settings.

    Raises:
        ConfigError: the directory can't be created or written to.
        Conflict: another process of that kind holds the lock.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / f"{daemon}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise state_dir_error(directory, daemon, error) from error
    try:
        os.lockf(lock, os.F_TLOCK, 0)
    except OSError as error:
        os.close(lock)
        raise Conflict(
            f"another {daemon} uses {directory}",
            hints=("stop it, or set another state_dir for this one",),
        ) from error
    return lock


def state_dir_error(path: Path, daemon: str, error: OSError) -> ConfigError:
    """Return the error for a state directory, or a file in it, that can't be used."""
    return ConfigError(
        f"can't use {path}: {error.strerror or error}",
        hints=(f"set state_dir in [{daemon}], or CORTEX_{daemon.upper()}__STATE_DIR",),
    )


def describe_write_failure(path: Path, reason: object) -> str:
    """Return the text for operators about a file that can't be written, with its file system."""
    return f"{path} can't be written: {reason} (file system mounted at {mount_point(path)})"


def mount_point(path: Path) -> Path:
    """Return the directory at which the file system of a path is mounted."""
    current = path.absolute()
    while not os.path.ismount(current) and current != current.parent:
        current = current.parent
    return current
