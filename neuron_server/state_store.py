"""The neuron's state on disk: its id, a record per running engine, past loads, load cycles, directives and logs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import quote

from pydantic import Field, TypeAdapter, ValidationError

from cortex_common.config.secrets import secret_values
from cortex_common.log import event
from cortex_common.net.state_dir import describe_write_failure, lock_state_dir, state_dir_error
from cortex_common.schema.base import WireModel
from cortex_common.schema.bounds import (
    Count,
    Devices,
    Mib,
    Name,
    PositiveCount,
    Seconds,
    UnixSeconds,
)
from cortex_common.schema.directives import Directive
from cortex_common.schema.hardware import HostWarning
from cortex_common.schema.instances import InstanceId, LoadSpec, SafeInstanceId
from neuron_server.harness.base import LoadCycles
from neuron_server.process.engine_log import EngineLog

log = logging.getLogger(__name__)

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

_LOAD_CYCLES = TypeAdapter(dict[str, LoadCycles])
_LOADS = TypeAdapter(dict[str, object])
_DIRECTIVES = TypeAdapter(tuple[Directive, ...])

T = TypeVar("T")


class EngineRecord(WireModel):
    """What the next neuron needs to find and adopt an engine.

    Attributes:
        uuids: UUIDs of its devices, whose indices can change; missing in older records.
        last_used: Unix seconds at which it was last used.
        pid: pid of its group leader; together with `started_ticks` and `boot` it identifies one process uniquely.
    """

    instance_id: SafeInstanceId
    spec: LoadSpec
    devices: Devices
    granted_mb: Mib
    budget_mb: Mib | None = None
    host_mb: Mib = 0
    attributed_mb: Annotated[tuple[Mib, ...], Field(max_length=64)] = ()
    port: Annotated[int, Field(ge=0, le=65535)]
    pid: PositiveCount
    started_ticks: Count
    boot: Name
    started_at: UnixSeconds
    load_seconds: Seconds | None = None
    uuids: Annotated[tuple[Name, ...], Field(max_length=64)] = ()
    last_used: UnixSeconds = 0.0


class PastLoad(WireModel):
    """The time and memory that the last loads of a spec took on a type of device of this host.

    Attributes:
        seconds: duration of the last load that succeeded; None if none did.
        per_device_mb: highest MiB measured on one device; None if it was not measured.
        budget_mb: MiB that the engine was configured to use.
        too_small_mb: MiB on each device with which the engine ran out of memory since then.
    """

    seconds: Seconds | None = None
    per_device_mb: Mib | None = None
    budget_mb: Mib | None = None
    too_small_mb: Mib | None = None


class StateDir:
    """A neuron's state directory, locked by one neuron at a time.

    A failed write, for example on a full disk, stops neither an engine nor the neuron: it is reported as a host
    warning.

    Raises:
        ConfigError: the directory can't be created or written to.
        Conflict: another neuron has locked it.

    Attributes:
        node_id: identifies the node among all nodes, whatever its addresses and host names are.
        write_failures: writes that failed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._records_dir = self.path / "instances"
        self._loads_file = self.path / "loads.json"
        self._cycles_file = self.path / "attached.json"
        self._directives_file = self.path / "directives.json"
        self._write_errors: dict[Path, str] = {}
        self.write_failures = 0
        self._lock = lock_state_dir(self.path, "neuron")
        try:
            self._records_dir.mkdir(mode=0o700, exist_ok=True)  # specs can contain tokens
        except OSError as error:
            os.close(self._lock)
            raise state_dir_error(self._records_dir, "neuron", error) from error
        self.node_id = self._read_or_create_id()

    @property
    def owner(self) -> str:
        """Id that marks the engines of this directory's neurons."""
        return owner_id(self.path)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._lock)

    def log(self, instance: InstanceId, spec: LoadSpec | None = None) -> EngineLog:
        """Return the log of an instance's engine; given its spec, without the secrets in it."""
        secrets = () if spec is None else secret_values(spec.args, spec.env)
        return EngineLog(self.path / "logs" / f"{instance}.log", secrets=secrets)

    def remove_logs(self, *, keep: Collection[str]) -> None:
        """Remove the logs of all instances but those in `keep`."""
        for path in (self.path / "logs").glob("*.log"):
            if path.stem not in keep:
                EngineLog(path).remove()

    def warnings(self) -> Iterator[HostWarning]:
        """Yield a warning if the last write of a file failed."""
        for path, error in tuple(self._write_errors.items())[:1]:
            yield HostWarning(
                code="state_write_failed",
                message=f"{describe_write_failure(path, error)}; meanwhile, what this node learns is lost when it "
                "restarts, and its engines can't be adopted",
            )

    def save_record(self, record: EngineRecord) -> bool:
        """Write or replace a record atomically; return whether that succeeded."""
        return self._replace(self._record_path(record.instance_id), record.model_dump_json())

    def remove_record(self, instance: InstanceId) -> None:
        """Remove a record, if it exists."""
        with contextlib.suppress(OSError):  # the record of an ended engine is ignored
            self._record_path(instance).unlink(missing_ok=True)
        self._write_errors.pop(self._record_path(instance), None)

    def records(self) -> Iterator[EngineRecord]:
        """Yield all valid records; others are set aside."""
        for path in sorted(self._records_dir.glob("*.json")):
            record = self._read(path, EngineRecord.model_validate_json, None)
            if record is not None:
                yield record

    def past_load(self, spec: LoadSpec, card: str) -> PastLoad | None:
        """Return what the last load of a spec on a type of device took; None if there was none."""
        try:
            return PastLoad.model_validate(self._read_loads()[_load_key(spec, card)])
        except (KeyError, ValidationError):
            return None

    def save_past_load(self, spec: LoadSpec, card: str, load: PastLoad) -> None:
        """Save what a load took, for future estimates."""
        loads = self._read_loads() | {_load_key(spec, card): load.model_dump()}
        self._replace(self._loads_file, json.dumps(loads, indent=1))

    def forget_past_loads(self, model: str) -> bool:
        """Forget what loads of a model took; return whether anything was known."""
        loads = self._read_loads()
        kept = {key: load for key, load in loads.items() if key.split(" ", 1)[0] != quote(model)}
        if len(kept) == len(loads):
            return False
        self._replace(self._loads_file, json.dumps(kept, indent=1))
        return True

    def load_cycles(self) -> dict[str, LoadCycles]:
        """Return the saved load cycles of the attached engines, by harness."""
        return self._read(self._cycles_file, _LOAD_CYCLES.validate_json, {})

    def save_load_cycles(self, cycles: Mapping[str, LoadCycles]) -> None:
        """Save the load cycles of the attached engines, by harness."""
        self._replace(self._cycles_file, _LOAD_CYCLES.dump_json(dict(cycles)).decode())

    def directives(self) -> tuple[Directive, ...]:
        """Return the saved directives."""
        return self._read(self._directives_file, _DIRECTIVES.validate_json, ())

    def save_directives(self, directives: Iterable[Directive]) -> bool:
        """Save the directives; return whether that succeeded."""
        text = _DIRECTIVES.dump_json(tuple(directives), exclude_defaults=True).decode()
        return self._replace(self._directives_file, text)

    def _read_or_create_id(self) -> str:
        """Return the id of the node; where it can't be saved, it holds until the neuron stops."""
        path = self.path / "node-id"
        node_id = self._read(path, lambda data: data.decode("ascii").strip()[:64], "")
        if not node_id:
            node_id = uuid.uuid4().hex
            self._replace(path, node_id)
        return node_id

    def _read_loads(self) -> dict[str, object]:
        return self._read(self._loads_file, _LOADS.validate_json, {})

    @staticmethod
    def _read(path: Path, parse: Callable[[bytes], T], default: T) -> T:
        """Return the parsed content of a file; a damaged one is set aside, so that it is not overwritten unseen."""
        try:
            return parse(path.read_bytes())
        except FileNotFoundError:
            return default
        except OSError as error:
            event(log, "state_read_failed", logging.WARNING, path=path, reason=error)
            return default
        except ValueError as error:  # not UTF-8, not JSON, or not what is expected
            aside = path.with_name(f"{path.name}.damaged")
            event(log, "state_damaged", logging.WARNING, path=path, kept_as=aside, reason=error)
            with contextlib.suppress(OSError):
                path.replace(aside)
            return default

    def _replace(self, path: Path, text: str) -> bool:
        temporary = path.with_name(path.name + ".new")
        try:
            temporary.unlink(missing_ok=True)
            with os.fdopen(os.open(temporary, _NEW_FILE, 0o600), "w") as file:
                file.write(text)
            temporary.replace(path)
        except OSError as error:
            if path not in self._write_errors:
                event(log, "state_write_failed", logging.WARNING, path=path, reason=error)
            self._write_errors[path] = error.strerror or str(error)
            self.write_failures += 1
            return False
        self._write_errors.pop(path, None)
        return True

    def _record_path(self, instance: InstanceId) -> Path:
        return self._records_dir / f"{instance}.json"


def owner_id(state_dir: Path) -> str:
    """Return the id that marks the engines of a state directory's neurons."""
    return hashlib.sha256(str(state_dir.absolute()).encode()).hexdigest()[:16]


def _load_key(spec: LoadSpec, card: str) -> str:
    """Return a key of everything that a load's memory and time depend on; it begins with the model's quoted name."""
    parts = (spec.harness, spec.source or spec.model_id, spec.file, spec.quant, spec.context)
    sizes = (spec.parallel, spec.tensor_parallel, spec.vram_mb, card, *spec.args)
    values = ("-" if part is None else str(part) for part in (*parts, *sizes))
    return " ".join((quote(spec.model_id), *values))
