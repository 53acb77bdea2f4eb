"""The RPMs: what lies where, who may read it, and that the linter has nothing to say."""

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
    """Lines of a query's format over all files."""
    command = ["rpm", "-qp", "--qf", f"[{what}\\n]", str(package)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", FILES)
def test_files_lie_where_they_belong(name: str, packages: dict[str, Path]):
    """Outside the private environments there is what is listed here, and nothing in the system's Python."""
    paths = {path.removesuffix(".gz") for path in query(packages[name], "%{FILENAMES}")}
    documents = {path for path in paths if path.startswith(("/usr/share/doc/", "/usr/share/lic"))}

    assert {p for p in paths - documents if not PRIVATE.match(p)} == FILES[name]
    assert any(re.fullmatch(rf"/usr/share/licenses/{name}[^/]*/LICENSE", p) for p in documents)


def test_settings_are_the_operators_and_the_services(packages: dict[str, Path]):
    """An upgrade leaves changed settings alone, and only root and the service can read them."""
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


def test_each_environment_has_what_its_daemon_needs(root: Path):
    """No terminal UI on GPU hosts, and the engine only with its package."""
    lib = root / "usr/lib64"
    (cortex,), (neuron,) = (
        lib.glob(f"{name}/lib/*/site-packages") for name in ("cortex", "neuron")
    )

    assert (cortex / "textual").is_dir()
    assert not (neuron / "textual").exists()
    assert (neuron / "pynvml.py").is_file()
    assert (neuron / "mistralrs").is_dir()


def test_nothing_tells_where_it_was_built(root: Path):
    """No file, script or bytecode names the build's directories."""
    found = subprocess.run(
        ["grep", "-rlF", "-e", "BUILDROOT/", "-e", str(REPO), root],
        check=False,
        capture_output=True,
        text=True,
    )

    assert found.stdout == ""


def test_every_module_is_compiled(root: Path):
    """Nothing is written below /usr when it runs: the service could not."""
    modules = list(root.glob("usr/lib64/*/lib/*/site-packages/cortex_*/**/*.py"))
    caches = {p.name.split(".")[0] for p in root.rglob("site-packages/cortex_*/**/*.pyc")}

    assert len(modules) > 200
    assert {path.stem for path in modules} - caches == set()


def test_only_the_system_is_required(packages: dict[str, Path]):
    """The environments' own libraries are neither asked of the system nor offered to it."""
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
def test_the_linter_is_content(packages: dict[str, Path]):
    """What rpm/rpmlint.toml lets pass is commented there; anything else is wrong."""
    source = list((REPO / "build" / "rpm" / "SRPMS").glob("*.rpm"))
    done = subprocess.run(
        ["rpmlint", "-c", REPO / "rpm" / "rpmlint.toml", *packages.values(), *source],
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout
    assert " 0 errors, 0 warnings" in done.stdout
