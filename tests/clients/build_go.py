"""Build the Go client of the tests outside of the checkout, and print its path.

Go's standard library is compiled the first time, about thirty seconds on one core, so it is built only on request.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from clients.fetch_npm import clients_dir

SOURCE = Path(__file__).with_name("stream.go")


def find_or_build() -> Path | str:
    """Return the binary, or why there is none: it is built only with CORTEX_TEST_GO=1."""
    version = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    built = clients_dir() / f"go-stream-{version}"
    if built.exists():
        return built
    if os.environ.get("CORTEX_TEST_GO") != "1":
        return "no Go client in the cache: CORTEX_TEST_GO=1 builds it"
    if shutil.which("go") is None:
        return "go is not installed"
    subprocess.run(
        ["go", "build", "-o", str(built), str(SOURCE)],
        check=True,
        env=os.environ | {"CGO_ENABLED": "0"},
    )
    return built


if __name__ == "__main__":
    os.environ["CORTEX_TEST_GO"] = "1"
    found = find_or_build()
    print(found) if isinstance(found, Path) else sys.exit(found)
