from __future__ import annotations

import logging
import socket
from pathlib import Path

from cortex_common.net.systemd import notify


def test_a_service_manager_that_is_gone_is_no_reason_to_fail(tmp_path: Path, caplog):
    """A daemon whose socket to systemd is not there goes on, and its log says so."""
    with caplog.at_level(logging.WARNING):
        notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")})

    assert "READY=1 could not be told to the service manager" in caplog.text


def test_a_service_manager_that_does_not_read_is_not_waited_for(tmp_path: Path, caplog):
    """Once nobody reads its messages, a daemon drops them after a moment."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        with caplog.at_level(logging.WARNING):
            while not caplog.records:
                notify("WATCHDOG=1", {"NOTIFY_SOCKET": path})
        assert sock.recv(100) == b"WATCHDOG=1"
