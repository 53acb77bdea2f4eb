"""Builds a mistralrs server for the tests marked `mistralrs`, outside of the checkout, and prints its path.

The crate mistralrs-cli is compiled for the CPU, without optimization: its 700 crates take an hour on two cores even so,
and the tests' models are tiny. An interrupted build is resumed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from engines.build_llama import engines_dir

CRATE, VERSION = "mistralrs-cli", "0.8.1"
_FAST_BUILD = {"OPT_LEVEL": "0", "LTO": "off", "CODEGEN_UNITS": "16", "DEBUG": "0"}


def find() -> Path | None:
    """Return the mistralrs program, if it has been built."""
    path = engines_dir() / "mistralrs" / "bin" / "mistralrs"
    return path if path.is_file() else None


def build() -> Path:
    """Build mistralrs unless it exists; return its path."""
    if (found := find()) is not None:
        return found
    cargo = shutil.which("cargo")
    if cargo is None:
        sys.exit("there is no cargo on PATH: install Rust 1.88 or later (rustup.rs)")
    target = engines_dir() / "mistralrs-build"
    profile = {f"CARGO_PROFILE_RELEASE_{name}": value for name, value in _FAST_BUILD.items()}
    install = [cargo, "install", CRATE, "--version", VERSION, "--locked"]
    subprocess.run(
        [*install, "--root", engines_dir() / "mistralrs"],
        check=True,
        env=os.environ | profile | {"CARGO_TARGET_DIR": str(target)},
    )
    built = find()
    if built is None:
        sys.exit(f"{CRATE} was installed in {engines_dir()}, but contains no mistralrs")
    shutil.rmtree(target)
    return built


if __name__ == "__main__":
    print(build())
