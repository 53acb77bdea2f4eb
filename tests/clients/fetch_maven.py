"""Fetch LangChain4j for the tests marked `maven`, outside of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from clients.fetch_npm import TIMEOUT_S, clients_dir

VERSION = "1.0.1"
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>cortex</groupId><artifactId>clients</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>dev.langchain4j</groupId><artifactId>langchain4j-open-ai</artifactId><version>{VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""


def find_or_fetch() -> str:
    """Return the classpath, or "" if there is none: it is fetched only with CORTEX_TEST_MAVEN=1."""
    folder = clients_dir() / f"langchain4j-{VERSION}"
    classpath = folder / "classpath"
    if classpath.exists():
        return classpath.read_text(encoding="utf-8")
    if os.environ.get("CORTEX_TEST_MAVEN") != "1":
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pom.xml").write_text(_POM, encoding="utf-8")
    command = ("mvn", "-q", "-B", "dependency:build-classpath", f"-Dmdep.outputFile={classpath}")
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return ""
    return classpath.read_text(encoding="utf-8")


if __name__ == "__main__":
    os.environ["CORTEX_TEST_MAVEN"] = "1"
    found = find_or_fetch()
    print(Path(found.split(":")[0]).name) if found else sys.exit("LangChain4j can't be fetched")
