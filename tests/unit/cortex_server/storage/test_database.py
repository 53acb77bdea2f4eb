"""The SQLite files of a state directory."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from cortex_common.errors import ConfigError
from cortex_server.storage.database import opened

TABLE = "create table if not exists kept (word text)"


def test_what_is_kept_is_no_matter_of_other_users(tmp_path: Path):
    """Neither the file nor what SQLite puts beside it while it is written can be read by others."""
    with contextlib.closing(opened(tmp_path / "a.sqlite", TABLE, rebuildable=False)) as db:
        db.execute("insert into kept values ('x')")
        db.commit()
        assert {p.stat().st_mode & 0o077 for p in tmp_path.iterdir()} == {0}


def test_a_file_that_cannot_be_made_is_told_by_name(tmp_path: Path):
    """Its folder is missing."""
    with pytest.raises(ConfigError, match=r"can't use .*/nowhere/a\.sqlite: unable to open"):
        opened(tmp_path / "nowhere" / "a.sqlite", TABLE, rebuildable=True)
