"""Chooses which versions the packages carry, for every Python that they may be built for; run by `make lock`.

Each lock holds the hashes of all files of a release, so that one serves all of them.
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
"""What is in each; the engine's is installed on top of the neuron's, so it follows that one's versions."""


def main() -> None:
    """Write all locks."""
    for name, wanted in LOCKS.items():
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--upgrade"]
        command += ["--universal", "--python-version", "3.11", "--generate-hashes"]
        command += ["--no-annotate", "--no-header", *wanted]
        if "--extra" in wanted:
            command.append("pyproject.toml")
        if name == "neuron-engine-embedded":
            command += ["--constraint", "rpm/neuron.lock"]
        command += ["--output-file", f"rpm/{name}.lock"]
        subprocess.run(command, check=True, cwd=HERE.parent)


if __name__ == "__main__":
    main()
