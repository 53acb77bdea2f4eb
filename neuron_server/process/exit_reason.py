"""Why an engine ended, from its exit status and its last words."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum


class ExitKind(StrEnum):
    """What an operator does next depends on this."""

    BAD_ARGUMENTS = "bad_arguments"
    OUT_OF_MEMORY = "out_of_memory"
    PORT_TAKEN = "port_taken"
    WRONG_BUILD = "wrong_build"
    BAD_WEIGHTS = "bad_weights"
    UNKNOWN_MODEL = "unknown_model"
    CRASH = "crash"
    KILLED = "killed"
    ENDED = "ended"
    HUNG = "hung"


@dataclass(frozen=True, slots=True)
class Exit:
    """An engine's end, for people: `message` carries the last lines of its log."""

    kind: ExitKind
    message: str


_PORT_TAKEN = re.compile(
    r"address (is )?already in use|couldn't bind|bind\(\) failed|EADDRINUSE", re.IGNORECASE
)
_MEMORY = re.compile(
    r"out of memory|out_of_memory|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY|failed to allocate"
    r"|unable to allocate|MemoryError|std::bad_alloc|cannot allocate memory"
    r"|less than desired [CG]PU memory utilization|No available memory for the cache blocks"
    r"|larger than the available KV cache|Not enough memory\. Please try to increase --mem-fraction-static",
    re.IGNORECASE,
)
_ARGUMENTS = re.compile(
    r"unrecognized arguments|unknown argument|invalid argument:|unexpected argument"
    r"|the following arguments are required|error: argument|invalid value .* for '|no such option",
    re.IGNORECASE,
)
_WRONG_BUILD = re.compile(
    r"no kernel image is available|driver version is insufficient|unsupported toolchain"
    r"|CUDA_ERROR_(NO_BINARY_FOR_GPU|UNSUPPORTED_PTX_VERSION|SYSTEM_DRIVER_MISMATCH)",
    re.IGNORECASE,
)
_WEIGHTS = re.compile(
    r"failed to read (magic|key-value pairs|tensor info)|invalid magic characters|corrupted or incomplete"
    r"|Error while deserializing header",
    re.IGNORECASE,
)
_MODEL = re.compile(
    r"unknown (model|GGUF) architecture|does not recognize this architecture|architectures? .* are not supported",
    re.IGNORECASE,
)
_OWN_KILL = re.compile(r"It usually means (the|one) child failed")
"""What SGLang's head says before it kills its processes and itself, because one of them failed."""
_SURE = (
    (_PORT_TAKEN, ExitKind.PORT_TAKEN, "had its port taken by another process"),
    (_ARGUMENTS, ExitKind.BAD_ARGUMENTS, "did not accept its arguments"),
    (_WRONG_BUILD, ExitKind.WRONG_BUILD, "is built for other cards or drivers"),
    (_MEMORY, ExitKind.OUT_OF_MEMORY, "ran out of memory"),
    (_WEIGHTS, ExitKind.BAD_WEIGHTS, "found its weights damaged or incomplete"),
    (_MODEL, ExitKind.UNKNOWN_MODEL, "does not know this kind of model"),
)
"""What its words tell, the surest first."""
_STACK_FRAME = re.compile(r"\[0x[0-9a-f]+\]$|^\s*(\* )?(frame )?#\d+:? +\S")
"""As glibc, gdb and lldb print them; what they would push out of sight is the error before them."""
_PYTHON_FRAME = re.compile(r'^(.*?)  File ".+", line \d+')
"""Its source lines follow, indented; what a log puts before each line stands before them, too."""
_MOST_LINES = 12
_FATAL_SIGNALS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}


def classify(status: int | None, last_lines: Sequence[str], oom_kills: int = 0) -> Exit:
    """Say why an engine ended.

    Args:
        status: as subprocess reports it: negative for a signal; None where it is not known (an adopted engine is
            no child of this process).
        last_lines: the end of its log.
        oom_kills: processes of its host that the kernel ended for want of memory while it ran.
    """
    tail = list(_told(last_lines))[-_MOST_LINES:]
    text = "\n".join(tail)
    kind, what = _kind(status, text, oom_kills)
    return Exit(kind, f"{what}:\n{text}" if tail else f"{what} without a word")


def _told(lines: Sequence[str]) -> Iterator[str]:
    """What is no part of a stack, once: an error that passes through several processes is printed by each of them."""
    source: str | None = None
    seen: set[str] = set()
    for line in map(str.rstrip, lines):
        if frame := _PYTHON_FRAME.match(line):
            source = f"{frame[1]}    "
            continue
        if source is not None and line.startswith(source):
            continue
        source = None
        stack = _STACK_FRAME.search(line) or line.endswith("Traceback (most recent call last):")
        if line and not stack and line not in seen:
            seen.add(line)
            yield line


def _kind(status: int | None, text: str, oom_kills: int) -> tuple[ExitKind, str]:
    how = _how(status)
    if status == 0:
        return ExitKind.ENDED, f"the engine ended by itself ({how})"
    for pattern, kind, what in _SURE:
        if pattern.search(text) or (status == 2 and kind is ExitKind.BAD_ARGUMENTS):
            return kind, f"the engine {what} ({how})"
    if oom_kills and status in {None, -signal.SIGKILL}:
        what = "was killed while the kernel ended processes for want of memory on the host"
        return ExitKind.OUT_OF_MEMORY, f"the engine {what} ({how})"
    killed = status is not None and status < 0 and -status not in _FATAL_SIGNALS
    if killed and not _OWN_KILL.search(text):
        return ExitKind.KILLED, f"the engine was killed from outside ({how})"
    return ExitKind.CRASH, f"the engine crashed ({how})"


def _how(status: int | None) -> str:
    if status is None:
        return "exit status unknown"
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
