from __future__ import annotations

import os
import time

import pytest

# Textual reads this when it is imported; an animation half done is a picture that differs.
os.environ["TEXTUAL_ANIMATIONS"] = "none"


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch):
    """The same terminal for every test, whatever the one that the tests are started from."""
    for name in ("NO_COLOR", "COLORTERM", "CLICOLOR", "FORCE_COLOR", "TEXTUAL_THEME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
