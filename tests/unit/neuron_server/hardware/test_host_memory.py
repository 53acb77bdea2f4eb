"""The host's memory within the limits of control groups."""

from __future__ import annotations

from pathlib import Path

import psutil

from neuron_server.hardware.host_memory import read_host_memory

MIB = 1024 * 1024


def write(root: Path, files: dict[str, str]) -> Path:
    """Write files below a directory."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_smallest_limit_of_all_enclosing_groups_counts(tmp_path: Path):
    """A container's limit is the host's memory; page cache that can be reclaimed is available."""
    cgroups = write(
        tmp_path / "cgroup",
        {
            "pod/memory.max": f"{64 * MIB}\n",
            "pod/memory.current": f"{40 * MIB}\n",
            "pod/memory.stat": f"anon 1\ninactive_file {10 * MIB}\n",
            "pod/app/memory.max": "max\n",
            "pod/app/memory.current": "0\n",
        },
    )
    membership = tmp_path / "self"
    membership.write_text("0::/pod/app\n")
    memory = read_host_memory(cgroups, membership)
    assert (memory.total, memory.available) == (64 * MIB, 34 * MIB)


def test_version_1_groups_are_read(tmp_path: Path):
    """An older host has a hierarchy per controller, where no limit is a huge number."""
    cgroups = write(
        tmp_path / "cgroup",
        {
            "memory/box/memory.limit_in_bytes": f"{32 * MIB}\n",
            "memory/box/memory.usage_in_bytes": f"{40 * MIB}\n",
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    membership = tmp_path / "self"
    membership.write_text("5:cpu,cpuacct:/box\n4:memory:/box\n")
    memory = read_host_memory(cgroups, membership)
    assert (memory.total, memory.available) == (32 * MIB, 0)


def test_without_limits_the_kernels_numbers_count(tmp_path: Path):
    """A missing or unreadable hierarchy limits nothing."""
    assert read_host_memory(tmp_path, tmp_path / "missing").total == psutil.virtual_memory().total
