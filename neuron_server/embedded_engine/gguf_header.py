"""The chat template in the head of a GGUF file.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The reader of the gguf package decodes the
whole vocabulary before it tells anything, seconds for 128,000 words, and brings numpy into the engine's process.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_KEY = b"tokenizer.chat_template"
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the types that have a fixed size."""
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


def chat_template(file: Path) -> str | None:
    """The model's own chat template, if it has one.

    Raises:
        OSError: the file can't be read.
        ValueError: it is no GGUF file of version 2 or 3.
    """
    # Mapped: the head of a model with a large vocabulary is megabytes long, and its rest gigabytes.
    with file.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            if data[:4] != b"GGUF" or _U32.unpack_from(data, 4)[0] not in {2, 3}:
                raise ValueError(f"{file} is no GGUF file of version 2 or 3")
            return _find(data, _U64.unpack_from(data, 16)[0])
        except struct.error as cut:
            raise ValueError(f"{file} ends in the middle of its head") from cut


def _find(data: mmap.mmap, entries: int) -> str | None:
    at = 24
    for _ in range(entries):
        start, at = at + 8, _past_string(data, at)
        key, kind = data[start:at], _U32.unpack_from(data, at)[0]
        start, at = at + 4, _past(data, at + 4, kind)
        if at > len(data):
            raise struct.error
        if key == _KEY and kind == _STRING:
            return data[start + 8 : at].decode()
    return None


def _past(data: mmap.mmap, at: int, kind: int) -> int:
    """Where a value of that type ends."""
    if kind == _STRING:
        return _past_string(data, at)
    if kind != _ARRAY:
        return at + _size(kind)
    inner: int = _U32.unpack_from(data, at)[0]
    count: int = _U64.unpack_from(data, at + 4)[0]
    at += 12
    if inner not in {_STRING, _ARRAY}:
        return at + count * _size(inner)
    for _ in range(count):
        at = _past(data, at, inner)
    return at


def _past_string(data: mmap.mmap, at: int) -> int:
    return at + 8 + int(_U64.unpack_from(data, at)[0])


def _size(kind: int) -> int:
    if kind not in _SIZES:
        raise ValueError(f"GGUF has no type {kind}")
    return _SIZES[kind]
