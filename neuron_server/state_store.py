"""What a neuron keeps on disk: a record for each running engine, and what past loads took."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from cortex_common.log import event
from cortex_common.net.state_dir import held, unusable
from cortex_common.schema.base import Wire
from cortex_common.schema.hardware import HostWarning
from cortex_common.schema.instances import InstanceId, LoadSpec
from neuron_server.harness.base import EngineAge
from neuron_server.process.engine_log import EngineLog

log = logging.getLogger(__name__)

_AGES = TypeAdapter(dict[str, EngineAge])


class EngineRecord(Wire):
    """Enough to find an engine again and to know what it is.

    Attributes:
        uuids: of its devices, which may have other numbers when the next neuron looks; older records lack them.
        pid: of its head; with `started_ticks` and `boot` it names one process for ever.
    """

    instance_id: InstanceId
    spec: LoadSpec
    devices: tuple[int, ...]
    granted_mb: int
    port: int
    pid: int
    started_ticks: int
    boot: str
    started_at: float
    load_seconds: float | None = None
    uuids: tuple[str, ...] = ()


class PastLoad(Wire):
    """What the last load of its kind took on this host.

    Attributes:
        per_device_mb: the most that was measured on one device.
    """

    seconds: float
    per_device_mb: int | None = None


class StateDir:
    """A neuron's directory; held by one neuron at a time.

    What can't be written, as on a full disk, stops no engine and no neuron: it is told as a warning of the host.

    Raises:
        ConfigError: it can't be made, or written.
        Conflict: another neuron holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._records = self.path / "instances"
        self._loads = self.path / "loads.json"
        self._ages = self.path / "attached.json"
        self._unwritten: dict[Path, str] = {}
        self._lock = held(self.path, "neuron")
        try:
            self._records.mkdir(mode=0o700, exist_ok=True)  # specs may carry tokens
        except OSError as failed:
            os.close(self._lock)
            raise unusable(self._records, "neuron", failed) from failed

    @property
    def owner(self) -> str:
        """Marks the engines that neurons of this directory start."""
        return owner_of(self.path)

    def close(self) -> None:
        """Let another neuron have it."""
        os.close(self._lock)

    def log(self, instance: InstanceId) -> EngineLog:
        """Where an instance's output goes."""
        return EngineLog(self.path / "logs" / f"{instance}.log")

    def remove_logs(self, *, keep: Collection[str]) -> None:
        """Remove the logs of instances that are no more."""
        for path in (self.path / "logs").glob("*.log"):
            if path.stem not in keep:
                EngineLog(path).remove()

    def warnings(self) -> Iterator[HostWarning]:
        """That a record could not be written when that was last tried."""
        records = (why for path, why in self._unwritten.items() if path.parent == self._records)
        if (why := next(records, None)) is not None:
            yield HostWarning(
                code="state_not_written",
                message=f"{self.path} can't be written: {why}; "
                "until it can, engines that are started are not found again by the next neuron",
            )

    def save(self, record: EngineRecord) -> bool:
        """Write or replace a record, all or nothing; whether it could be."""
        return self._replace(self._record(record.instance_id), record.model_dump_json())

    def forget(self, instance: InstanceId) -> None:
        """Remove a record."""
        with contextlib.suppress(OSError):  # of an engine that has ended it does no harm
            self._record(instance).unlink(missing_ok=True)
        self._unwritten.pop(self._record(instance), None)

    def records(self) -> Iterator[EngineRecord]:
        """All that can be read; what can't is removed."""
        for path in sorted(self._records.glob("*.json")):
            try:
                yield EngineRecord.model_validate_json(path.read_bytes())
            except ValidationError:
                path.unlink(missing_ok=True)

    def past_load(self, spec: LoadSpec, kind: str) -> PastLoad | None:
        """What the last load of such a spec on such a kind of device took."""
        try:
            return PastLoad.model_validate(self._read_loads()[_load_key(spec, kind)])
        except (KeyError, ValidationError):
            return None

    def remember_load(self, spec: LoadSpec, kind: str, load: PastLoad) -> None:
        """Keep what a load took, for estimates to come."""
        loads = self._read_loads() | {_load_key(spec, kind): load.model_dump()}
        self._replace(self._loads, json.dumps(loads, indent=1))

    def ages(self) -> dict[str, EngineAge]:
        """How old the attached engines were, by harness."""
        try:
            return _AGES.validate_json(self._ages.read_bytes())
        except (FileNotFoundError, ValidationError):
            return {}

    def save_ages(self, ages: Mapping[str, EngineAge]) -> None:
        """Keep them for the next neuron."""
        self._replace(self._ages, _AGES.dump_json(dict(ages)).decode())

    def _read_loads(self) -> dict[str, object]:
        try:
            found = json.loads(self._loads.read_bytes())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return found if isinstance(found, dict) else {}

    def _replace(self, path: Path, text: str) -> bool:
        fresh = path.with_name(path.name + ".new")
        try:
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(path)
        except OSError as failed:
            if path not in self._unwritten:
                event(log, "state_not_written", logging.WARNING, path=path, reason=failed)
            self._unwritten[path] = failed.strerror or str(failed)
            return False
        self._unwritten.pop(path, None)
        return True

    def _record(self, instance: InstanceId) -> Path:
        return self._records / f"{instance}.json"


def owner_of(state_dir: Path) -> str:
    """The mark that engines of a state directory carry."""
    return hashlib.sha256(str(state_dir.absolute()).encode()).hexdigest()[:16]


def _load_key(spec: LoadSpec, kind: str) -> str:
    """What a load's memory and time depend on."""
    parts = (spec.harness, spec.source or spec.model_id, spec.file, spec.quant, spec.context)
    more = (spec.parallel, spec.tensor_parallel, kind, *spec.args)
    return " ".join("-" if part is None else str(part) for part in (*parts, *more))
