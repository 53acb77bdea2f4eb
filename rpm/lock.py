"""Resolves the dependency versions of the packages for all supported Python versions; run by `make lock`.

Each lock file contains the hashes of all files of a release, so that it is valid for every Python version.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LOCKS = {
    "build": ("--group", "package"),
    "cortex": ("--extra", "gateway", "--extra", "tui", "--extra", "otel"),
    "neuron": ("--extra", "neuron"),
    "neuron-engine-embedded": ("--extra", "neuron", "--extra", "engine"),
}
"""Contents of each lock file. The engine is installed on top of the neuron's environment, so it uses the same
versions."""


def main() -> None:
    """Write all lock files."""
    for name, selection in LOCKS.items():
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--upgrade"]
        command += ["--universal", "--python-version", "3.11", "--generate-hashes"]
        command += ["--no-annotate", "--no-header", *selection]
        if "--extra" in selection:
            command.append("pyproject.toml")
        if name == "neuron-engine-embedded":
            command += ["--constraint", "rpm/neuron.lock"]
        command += ["--output-file", f"rpm/{name}.lock"]
        subprocess.run(command, check=True, cwd=HERE.parent)


if __name__ == "__main__":
    main()
