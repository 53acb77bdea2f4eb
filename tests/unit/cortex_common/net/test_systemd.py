from __future__ import annotations

import logging
import socket
from pathlib import Path

from cortex_common.net.systemd import notify


def test_missing_service_manager_is_not_an_error(tmp_path: Path, caplog):
    """If systemd's socket does not exist, the daemon logs a warning and continues."""
    with caplog.at_level(logging.WARNING):
        notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")})

    assert "could not send READY=1 to the service manager" in caplog.text


def test_unresponsive_service_manager_does_not_block(tmp_path: Path, caplog):
    """If systemd does not read its messages, they are dropped after a short timeout."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        with caplog.at_level(logging.WARNING):
            while not caplog.records:
                notify("WATCHDOG=1", {"NOTIFY_SOCKET": path})
        assert sock.recv(100) == b"WATCHDOG=1"
