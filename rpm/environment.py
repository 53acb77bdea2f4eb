"""Makes a private Python environment inside a build root, or adds to it; run by cortex.spec with the target's Python.

It is what `python -m venv` makes, less what names the build root or is for interactive use, and the whole of it is
installed from a lock and a wheelhouse, by the pip in that wheelhouse. Prints nothing; writes the list of what it
added, in the form that %files reads.
"""

from __future__ import annotations

import argparse
import compileall
import os
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def create(where: Path) -> None:
    """An empty environment whose files say nothing about where they were made."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", where], check=True)
    for leftover in ("include", "bin"):
        shutil.rmtree(where / leftover)
    (where / "lib64").unlink(missing_ok=True)
    interpreter = Path("/usr/bin") / f"python{sys.version_info.major}.{sys.version_info.minor}"
    (where / "bin").mkdir()
    (where / "bin" / interpreter.name).symlink_to(interpreter)
    (where / "bin" / "python3").symlink_to(interpreter.name)
    (where / "bin" / "python").symlink_to("python3")
    (where / "pyvenv.cfg").write_text(
        f"home = {interpreter.parent}\ninclude-system-site-packages = false\n", encoding="utf-8"
    )


def install(where: Path, wheels: Path, *what: str) -> None:
    """Install wheels without looking anywhere else."""
    (pip,) = wheels.glob("pip-*.whl")
    command: list[str | Path] = [where / "bin" / "python3", "-I", "-B", pip / "pip", "--isolated"]
    command += ["install", "--quiet", "--no-index", "--find-links", wheels, "--no-deps"]
    command += ["--no-compile", "--no-cache-dir", "--disable-pip-version-check"]
    subprocess.run([*command, *what], check=True)


def settle(where: Path, build_root: Path, before: set[Path]) -> None:
    """Take away the scripts, whose first line names the build root, and compile for the final place."""
    for script in (where / "bin").iterdir():
        if not script.name.startswith("python"):
            script.unlink()
    for module in sorted(set(where.rglob("*.py")) - before):
        # None of them is a program here, whatever its first line says.
        module.chmod(0o644)
        compileall.compile_file(
            module,
            force=True,
            quiet=1,
            # Files of a package change only with it, so that nothing needs to be compared at start.
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            stripdir=str(build_root),
        )


def added(where: Path, build_root: Path, before: set[Path]) -> Iterator[str]:
    """Lines for %files."""
    for path in sorted(set(everything(where)) - before):
        directory = "%dir " if path.is_dir() and not path.is_symlink() else ""
        yield f'{directory}"/{path.relative_to(build_root)}"'


def everything(where: Path) -> Iterator[Path]:
    """The environment's root and all below."""
    if where.exists():
        yield where
        yield from where.rglob("*")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path, help="final place, such as /usr/lib64/cortex")
    parser.add_argument("lock", type=Path)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--wheel", type=Path, help="cortex's own")
    parser.add_argument("--files", type=Path, required=True, help="list to write")
    given = parser.parse_args()
    build_root = Path(os.environ["RPM_BUILD_ROOT"])
    where = build_root / given.place.relative_to("/")
    before = set(everything(where))
    if not before:
        create(where)
    wheels = given.wheels.absolute()
    install(where, wheels, "--require-hashes", "--requirement", str(given.lock))
    if given.wheel is not None:
        # By name: what is installed from a path notes that path.
        install(where, wheels, "--find-links", str(given.wheel.absolute().parent), "cortex-gpu")
    settle(where, build_root, before)
    given.files.write_text("\n".join(added(where, build_root, before)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
