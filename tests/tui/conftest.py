from __future__ import annotations

import time

import pytest
from textual import constants


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch):
    """The same terminal for every test, whatever the one that the tests are started from."""
    for name in ("NO_COLOR", "COLORTERM", "CLICOLOR", "FORCE_COLOR", "TEXTUAL_THEME"):
        monkeypatch.delenv(name, raising=False)
    # An animation half done is a picture that differs. Textual has read its variable before this file is.
    monkeypatch.setattr(constants, "TEXTUAL_ANIMATIONS", "none")
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
