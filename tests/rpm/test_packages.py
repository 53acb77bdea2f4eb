"""The RPMs: their files and permissions, and that rpmlint reports nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
PRIVATE = re.compile(r"/usr/lib64/(cortex|neuron)(/|$)")

COMMANDS = [path.stem for path in (REPO / "cortex_cli" / "commands").glob("[!_]*.py")]
FILES = {
    "cortex": {
        "/etc/cortex",
        "/etc/cortex/cortex.toml",
        "/etc/cortex/models.toml",
        "/usr/bin/cortex",
        "/usr/lib/firewalld/services/cortex.xml",
        "/usr/lib/systemd/system/cortex.service",
        "/usr/lib/sysusers.d/cortex-groups.conf",
        "/usr/lib/sysusers.d/cortex.conf",
        "/usr/share/bash-completion/completions/cortex",
        "/usr/share/fish/vendor_completions.d/cortex.fish",
        "/usr/share/zsh/site-functions/_cortex",
        "/usr/share/man/man1/cortex.1",
        *(f"/usr/share/man/man1/cortex-{name}.1" for name in COMMANDS),
        "/usr/share/man/man5/cortex.toml.5",
        "/usr/share/man/man5/models.toml.5",
    },
    "neuron": {
        "/etc/cortex",
        "/etc/cortex/neuron.toml",
        "/usr/lib/firewalld/services/neuron.xml",
        "/usr/lib/systemd/system/neuron.service",
        "/usr/lib/sysusers.d/neuron-groups.conf",
        "/usr/lib/sysusers.d/neuron.conf",
        "/usr/libexec/cortex",
        "/usr/libexec/cortex/neuron",
        "/usr/share/man/man5/neuron.toml.5",
        "/usr/share/man/man8/neuron.8",
    },
    "neuron-engine-embedded": set(),
}


def query(package: Path, what: str) -> list[str]:
    """Return the lines of an rpm query format applied to a package."""
    command = ["rpm", "-qp", "--qf", f"[{what}\\n]", str(package)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", FILES)
def test_package_files(name: str, packages: dict[str, Path]):
    """Outside the private environments, a package contains exactly the listed files."""
    paths = {path.removesuffix(".gz") for path in query(packages[name], "%{FILENAMES}")}
    documents = {path for path in paths if path.startswith(("/usr/share/doc/", "/usr/share/lic"))}

    assert {p for p in paths - documents if not PRIVATE.match(p)} == FILES[name]
    assert any(re.fullmatch(rf"/usr/share/licenses/{name}[^/]*/LICENSE", p) for p in documents)


def test_settings_are_private_config_files(packages: dict[str, Path]):
    """An upgrade keeps modified settings, and only root and the service can read them."""
    found = {}
    for package in packages.values():
        for line in query(
            package, "%{FILENAMES} %{FILEFLAGS:fflags} %{FILEMODES:perms} %{FILEGROUPNAME}"
        ):
            path, *rest = line.split()
            if path.startswith("/etc/cortex/"):
                found[path] = rest

    assert found == {
        "/etc/cortex/cortex.toml": ["cn", "-rw-r-----", "cortex"],
        "/etc/cortex/models.toml": ["cn", "-rw-r-----", "cortex"],
        "/etc/cortex/neuron.toml": ["cn", "-rw-r-----", "neuron"],
    }


def test_environment_contents(root: Path):
    """The neuron's environment has no terminal UI, and the engine comes with its own package."""
    lib = root / "usr/lib64"
    (cortex,), (neuron,) = (
        lib.glob(f"{name}/lib/*/site-packages") for name in ("cortex", "neuron")
    )

    assert (cortex / "textual").is_dir()
    assert not (neuron / "textual").exists()
    assert (neuron / "pynvml.py").is_file()
    assert (neuron / "mistralrs").is_dir()


def test_no_file_contains_the_build_path(root: Path):
    """No file, script or bytecode contains the directories of the build."""
    found = subprocess.run(
        ["grep", "-rlF", "-e", "BUILDROOT/", "-e", str(REPO), root],
        check=False,
        capture_output=True,
        text=True,
    )

    assert found.stdout == ""


def test_all_modules_are_compiled(root: Path):
    """The service can't write bytecode below /usr at run time."""
    modules = list(root.glob("usr/lib64/*/lib/*/site-packages/cortex_*/**/*.py"))
    caches = {p.name.split(".")[0] for p in root.rglob("site-packages/cortex_*/**/*.pyc")}

    assert len(modules) > 200
    assert {path.stem for path in modules} - caches == set()


def test_dependencies_are_system_libraries(packages: dict[str, Path]):
    """Private libraries are neither required from the system nor provided to it."""
    for package in packages.values():
        required, provided = query(package, "%{REQUIRENAME}"), query(package, "%{PROVIDENAME}")
        libraries = {name.split("(")[0] for name in required if ".so" in name}

        assert [name for name in required + provided if "dist(" in name] == []
        assert {name.split(".so")[0] for name in libraries} <= {
            "ld-linux-x86-64",
            "libc",
            "libdl",
            "libgcc_s",
            "libm",
            "libpthread",
            "librt",
            "libstdc++",
            "libz",
        }
        assert [name for name in provided if ".so" in name] == []


@pytest.mark.skipif(shutil.which("rpmlint") is None, reason="needs rpmlint")
def test_rpmlint_reports_nothing(packages: dict[str, Path]):
    """rpm/rpmlint.toml lists the ignored findings with reasons."""
    source = list((REPO / "build" / "rpm" / "SRPMS").glob("*.rpm"))
    done = subprocess.run(
        ["rpmlint", "-c", REPO / "rpm" / "rpmlint.toml", *packages.values(), *source],
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout
    assert " 0 errors, 0 warnings" in done.stdout
