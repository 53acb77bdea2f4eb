"""Reads the chat template from the header of a GGUF file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The reader of the gguf package decodes the whole
vocabulary first, which takes seconds for 128,000 tokens, and imports numpy into the engine's process.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_KEY = b"tokenizer.chat_template"
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Size in bytes of each fixed-size type."""
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


def chat_template(file: Path) -> str | None:
    """Return the model's chat template; None if it has none.

    Raises:
        OSError: the file can't be read.
        ValueError: it is not a GGUF file of version 2 or 3.
    """
    # Mapped, because the header of a model with a large vocabulary has megabytes, and the rest gigabytes.
    with file.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            if data[:4] != b"GGUF" or _U32.unpack_from(data, 4)[0] not in {2, 3}:
                raise ValueError(f"{file} is not a GGUF file of version 2 or 3")
            return _find(data, _U64.unpack_from(data, 16)[0])
        except struct.error as truncated:
            raise ValueError(f"{file} ends in the middle of its header") from truncated


def _find(data: mmap.mmap, entries: int) -> str | None:
    at = 24
    for _ in range(entries):
        start, at = at + 8, _skip_string(data, at)
        key, kind = data[start:at], _U32.unpack_from(data, at)[0]
        start, at = at + 4, _skip(data, at + 4, kind)
        if at > len(data):
            raise struct.error
        if key == _KEY and kind == _STRING:
            return data[start + 8 : at].decode()
    return None


def _skip(data: mmap.mmap, at: int, kind: int) -> int:
    """Return the offset after a value of a type."""
    if kind == _STRING:
        return _skip_string(data, at)
    if kind != _ARRAY:
        return at + _size(kind)
    inner: int = _U32.unpack_from(data, at)[0]
    count: int = _U64.unpack_from(data, at + 4)[0]
    at += 12
    if inner not in {_STRING, _ARRAY}:
        return at + count * _size(inner)
    for _ in range(count):
        at = _skip(data, at, inner)
    return at


def _skip_string(data: mmap.mmap, at: int) -> int:
    return at + 8 + int(_U64.unpack_from(data, at)[0])


def _size(kind: int) -> int:
    if kind not in _SIZES:
        raise ValueError(f"GGUF has no type {kind}")
    return _SIZES[kind]
