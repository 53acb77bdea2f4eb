"""Creates or extends a private Python environment inside a build root; run by cortex.spec with the target's Python.

The result is what `python -m venv` creates, without files that contain the build root or are for interactive use.
Everything is installed from a lock file and a wheelhouse, by the pip in that wheelhouse. The added files are listed
in the format of %files.
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


def create(env: Path) -> None:
    """Create an empty environment whose files do not contain the path of the build root."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", env], check=True)
    for leftover in ("include", "bin"):
        shutil.rmtree(env / leftover)
    (env / "lib64").unlink(missing_ok=True)
    interpreter = Path("/usr/bin") / f"python{sys.version_info.major}.{sys.version_info.minor}"
    (env / "bin").mkdir()
    (env / "bin" / interpreter.name).symlink_to(interpreter)
    (env / "bin" / "python3").symlink_to(interpreter.name)
    (env / "bin" / "python").symlink_to("python3")
    (env / "pyvenv.cfg").write_text(
        f"home = {interpreter.parent}\ninclude-system-site-packages = false\n", encoding="utf-8"
    )


def install(env: Path, wheels: Path, *arguments: str) -> None:
    """Run `pip install` with the given wheels as the only source."""
    (pip,) = wheels.glob("pip-*.whl")
    command: list[str | Path] = [env / "bin" / "python3", "-I", "-B", pip / "pip", "--isolated"]
    command += ["install", "--quiet", "--no-index", "--find-links", wheels, "--no-deps"]
    command += ["--no-compile", "--no-cache-dir", "--disable-pip-version-check"]
    subprocess.run([*command, *arguments], check=True)


def finalize(env: Path, build_root: Path, before: set[Path]) -> None:
    """Remove scripts, whose first line contains the build root, and compile new modules for their final path."""
    for script in (env / "bin").iterdir():
        if not script.name.startswith("python"):
            script.unlink()
    for module in sorted(set(env.rglob("*.py")) - before):
        # Modules with a shebang line are not executables here.
        module.chmod(0o644)
        compileall.compile_file(
            module,
            force=True,
            quiet=1,
            # The files only change together with the package, so the interpreter need not check them.
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            stripdir=str(build_root),
        )


def added_files(env: Path, build_root: Path, before: set[Path]) -> Iterator[str]:
    """Yield the lines of %files for all paths that were added."""
    for path in sorted(set(all_paths(env)) - before):
        directory = "%dir " if path.is_dir() and not path.is_symlink() else ""
        yield f'{directory}"/{path.relative_to(build_root)}"'


def all_paths(env: Path) -> Iterator[Path]:
    """Yield the root of the environment and all paths below it."""
    if env.exists():
        yield env
        yield from env.rglob("*")


def main() -> None:
    """Parse the arguments, then create or extend the environment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="final path, such as /usr/lib64/cortex")
    parser.add_argument("lock", type=Path)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--wheel", type=Path, help="the wheel of cortex")
    parser.add_argument("--files", type=Path, required=True, help="list of files to write")
    args = parser.parse_args()
    build_root = Path(os.environ["RPM_BUILD_ROOT"])
    env = build_root / args.path.relative_to("/")
    before = set(all_paths(env))
    if not before:
        create(env)
    wheels = args.wheels.absolute()
    install(env, wheels, "--require-hashes", "--requirement", str(args.lock))
    if args.wheel is not None:
        # By name, because pip records the path of a wheel that is installed by path.
        install(env, wheels, "--find-links", str(args.wheel.absolute().parent), "cortex-gpu")
    finalize(env, build_root, before)
    args.files.write_text("\n".join(added_files(env, build_root, before)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
