"""Installs the wheel `xllamacpp`, a real llama.cpp server, outside of the checkout for tests marked `llama`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from engines.build_llama import engines_dir

PACKAGE = "xllamacpp"


def find() -> Path | None:
    """Return the directory that the wheel is installed in, if it is."""
    home = engines_dir() / PACKAGE
    return home if (home / PACKAGE).is_dir() else None


def build() -> Path:
    """Install the wheel unless it is installed; return its directory."""
    if (found := find()) is not None:
        return found
    home = engines_dir() / PACKAGE
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(home)]
    subprocess.run([*pip, PACKAGE], check=True)
    return home


if __name__ == "__main__":
    print(build())
