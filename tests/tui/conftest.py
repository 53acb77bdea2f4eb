from __future__ import annotations

import time

import pytest
from textual import constants


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch):
    """Provide the same terminal environment for every test."""
    for name in ("NO_COLOR", "COLORTERM", "CLICOLOR", "FORCE_COLOR", "TEXTUAL_THEME"):
        monkeypatch.delenv(name, raising=False)
    # A running animation would change the snapshot. Textual reads its variable before this file is imported.
    monkeypatch.setattr(constants, "TEXTUAL_ANIMATIONS", "none")
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
