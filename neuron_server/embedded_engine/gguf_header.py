"""Reads the chat template and numbers from the header of a GGUF file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The reader of the gguf package decodes the whole
vocabulary first, which takes seconds for 128,000 tokens, and imports numpy into the engine's process.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

_KEY = b"tokenizer.chat_template"
_MAX_ARRAY = 4096
"""Longer arrays of numbers are not decoded; those by layer are shorter."""
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 7: "<?", 10: "<Q", 11: "<q"}
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
    with _mapped(file) as data:
        try:
            for key, kind, at in _entries(data):
                if key == _KEY and kind == _STRING:
                    return data[at + 8 : _skip_string(data, at)].decode()
        except struct.error as truncated:
            raise ValueError(f"{file} ends in the middle of its header") from truncated
    return None


def metadata(file: Path) -> dict[str, object]:
    """Return the integers, short arrays of integers and short strings of a header; longer arrays by their length.

    Raises:
        OSError: the file can't be read.
        ValueError: it is not a GGUF file of version 2 or 3, or its header is truncated.
    """
    with _mapped(file) as data:
        try:
            return dict(_values(data))
        except struct.error as truncated:
            raise ValueError(f"{file} ends in the middle of its header") from truncated


def partial_metadata(begin: bytes) -> dict[str, object]:
    """Return the same from the first bytes of a file, as far as they reach.

    Raises:
        ValueError: it is not a GGUF file of version 2 or 3.
    """
    found: dict[str, object] = {}
    with contextlib.suppress(struct.error):  # the rest of the header is not there
        found.update(_values(begin))
    return found


def _mapped(file: Path) -> mmap.mmap:
    """Map a file: the header of a model with a large vocabulary has megabytes, and the rest gigabytes."""
    with file.open("rb") as source:
        return mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)


def _entries(data: mmap.mmap | bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the key, type and offset of each value.

    Raises:
        struct.error: the data end within the header.
        ValueError: it is not a GGUF header of version 2 or 3.
    """
    if data[:4] != b"GGUF" or _U32.unpack_from(data, 4)[0] not in {2, 3}:
        raise ValueError("this is not a GGUF file of version 2 or 3")
    at = 24
    for _ in range(_U64.unpack_from(data, 16)[0]):
        start, at = at + 8, _skip_string(data, at)
        key, kind = data[start:at], _U32.unpack_from(data, at)[0]
        yield key, kind, at + 4
        at = _skip(data, at + 4, kind)
        if at > len(data):
            raise struct.error


def _values(data: mmap.mmap | bytes) -> Iterator[tuple[str, object]]:
    for key, kind, at in _entries(data):
        name = key.decode(errors="replace")
        if kind in _FORMATS:
            yield name, struct.unpack_from(_FORMATS[kind], data, at)[0]
        elif kind == _STRING and (size := int(_U64.unpack_from(data, at)[0])) < _MAX_ARRAY:
            yield name, data[at + 8 : at + 8 + size].decode(errors="replace")
        elif kind == _ARRAY:
            inner, count = _U32.unpack_from(data, at)[0], int(_U64.unpack_from(data, at + 4)[0])
            if inner in _FORMATS and count < _MAX_ARRAY:
                step = struct.calcsize(_FORMATS[inner])
                offsets = range(at + 12, at + 12 + count * step, step)
                yield name, [struct.unpack_from(_FORMATS[inner], data, o)[0] for o in offsets]
            else:
                yield name, count


def _skip(data: mmap.mmap | bytes, at: int, kind: int) -> int:
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


def _skip_string(data: mmap.mmap | bytes, at: int) -> int:
    return at + 8 + int(_U64.unpack_from(data, at)[0])


def _size(kind: int) -> int:
    if kind not in _SIZES:
        raise ValueError(f"GGUF has no type {kind}")
    return _SIZES[kind]
