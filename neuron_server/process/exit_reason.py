"""Classifies why an engine ended, from its exit status and the end of its log."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cortex_common.schema.instances import OUT_OF_MEMORY


class ExitKind(StrEnum):
    """Why an engine ended; decides what an operator does next."""

    BAD_ARGUMENTS = "bad_arguments"
    OUT_OF_MEMORY = OUT_OF_MEMORY
    PORT_TAKEN = "port_taken"
    WRONG_BUILD = "wrong_build"
    BAD_WEIGHTS = "bad_weights"
    UNKNOWN_MODEL = "unknown_model"
    CRASH = "crash"
    KILLED = "killed"
    ENDED = "ended"
    HUNG = "hung"
    FAILING = "failing"


@dataclass(frozen=True, slots=True)
class ExitReason:
    """Why an engine ended; `message` includes the last lines of its log."""

    kind: ExitKind
    message: str


_PORT_TAKEN = re.compile(
    r"address (is )?already in use|couldn't bind|bind\(\) failed|EADDRINUSE", re.IGNORECASE
)
_OUT_OF_MEMORY = re.compile(
    r"out of memory|out_of_memory|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY|failed to allocate"
    r"|unable to allocate|MemoryError|std::bad_alloc|cannot allocate memory"
    r"|less than desired [CG]PU memory utilization|No available memory for the cache blocks"
    r"|larger than the available KV cache|Not enough memory\. Please try to increase --mem-fraction-static",
    re.IGNORECASE,
)
_BAD_ARGUMENTS = re.compile(
    r"unrecognized arguments|unknown argument|invalid argument:|unexpected argument"
    r"|the following arguments are required|error: argument|invalid value .* for '|no such option",
    re.IGNORECASE,
)
_WRONG_BUILD = re.compile(
    r"no kernel image is available|driver version is insufficient|unsupported toolchain"
    r"|CUDA_ERROR_(NO_BINARY_FOR_GPU|UNSUPPORTED_PTX_VERSION|SYSTEM_DRIVER_MISMATCH)",
    re.IGNORECASE,
)
_BAD_WEIGHTS = re.compile(
    r"failed to read (magic|key-value pairs|tensor info)|invalid magic characters|corrupted or incomplete"
    r"|Error while deserializing header",
    re.IGNORECASE,
)
_UNKNOWN_MODEL = re.compile(
    r"unknown (model|GGUF) architecture|does not recognize this architecture|architectures? .* are not supported",
    re.IGNORECASE,
)
_SELF_KILL = re.compile(r"It usually means (the|one) child failed")
"""Logged by SGLang's leader before it kills its processes and itself because one of them failed."""
_PATTERNS = (
    (_PORT_TAKEN, ExitKind.PORT_TAKEN, "could not bind its port because another process uses it"),
    (_BAD_ARGUMENTS, ExitKind.BAD_ARGUMENTS, "did not accept its arguments"),
    (_WRONG_BUILD, ExitKind.WRONG_BUILD, "is built for other GPUs or drivers"),
    (_OUT_OF_MEMORY, ExitKind.OUT_OF_MEMORY, "ran out of memory"),
    (_BAD_WEIGHTS, ExitKind.BAD_WEIGHTS, "rejected its weights as damaged or incomplete"),
    (_UNKNOWN_MODEL, ExitKind.UNKNOWN_MODEL, "does not support this model architecture"),
)
"""Log patterns, the most specific first."""
_STACK_FRAME = re.compile(r"\[0x[0-9a-f]+\]$|^\s*(\* )?(frame )?#\d+:? +\S")
"""Stack frames as glibc, gdb and lldb print them; left out so that the error before them stays visible."""
_PYTHON_FRAME = re.compile(r'^(.*?)  File ".+", line \d+')
"""Source lines follow it, indented and with the same log prefix as the frame."""
_MAX_LINES = 12
_FATAL_SIGNALS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}


def classify(status: int | None, last_lines: Sequence[str], oom_kills: int = 0) -> ExitReason:
    """Classify why an engine ended.

    Args:
        status: exit status as in subprocess, negative for a signal; None if unknown (an adopted engine is not a child
            of this process).
        last_lines: the end of its log.
        oom_kills: processes of the host that the kernel's OOM killer killed while it ran.
    """
    tail = list(_distinct_lines(last_lines))[-_MAX_LINES:]
    text = "\n".join(tail)
    kind, summary = _classify(status, text, oom_kills)
    return ExitReason(kind, f"{summary}:\n{text}" if tail else f"{summary} without any output")


def _distinct_lines(lines: Sequence[str]) -> Iterator[str]:
    """Yield the lines that are not part of a stack trace, each once: several processes can print the same error."""
    source_prefix: str | None = None
    seen: set[str] = set()
    for line in map(str.rstrip, lines):
        if frame := _PYTHON_FRAME.match(line):
            source_prefix = f"{frame[1]}    "
            continue
        if source_prefix is not None and line.startswith(source_prefix):
            continue
        source_prefix = None
        in_stack = _STACK_FRAME.search(line) or line.endswith("Traceback (most recent call last):")
        if line and not in_stack and line not in seen:
            seen.add(line)
            yield line


def _classify(status: int | None, text: str, oom_kills: int) -> tuple[ExitKind, str]:
    ending = _format_status(status)
    if status == 0:
        return ExitKind.ENDED, f"the engine exited by itself ({ending})"
    for pattern, kind, summary in _PATTERNS:
        if pattern.search(text) or (status == 2 and kind is ExitKind.BAD_ARGUMENTS):
            return kind, f"the engine {summary} ({ending})"
    if oom_kills and status in {None, -signal.SIGKILL}:
        summary = "the engine was killed while the host ran out of memory"
        return ExitKind.OUT_OF_MEMORY, f"{summary} ({ending})"
    killed = status is not None and status < 0 and -status not in _FATAL_SIGNALS
    if killed and not _SELF_KILL.search(text):
        return ExitKind.KILLED, f"the engine was killed by another process ({ending})"
    return ExitKind.CRASH, f"the engine crashed ({ending})"


def _format_status(status: int | None) -> str:
    if status is None:
        return "exit status unknown"
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
