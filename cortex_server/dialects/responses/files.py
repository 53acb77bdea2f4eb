"""Files in the input of the Responses API: text files and images are passed to the model, others are rejected."""

from __future__ import annotations

import base64
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from cortex_common.errors import BadRequest
from cortex_server.dialects.chat import ImagePart, ImageUrl, Part, TextPart

_MAX_PERCENT_ENCODED = 1 << 16
"""Characters of a data URL without base64, which is slow to decode."""


class FileInput(Struct):
    """A part of type "input_file"; `file_data` is a data URL, or base64 alone."""

    filename: str | None = None
    file_data: str | None = None
    file_url: str | None = None
    file_id: str | None = None


def translate_file(file: FileInput, path: str) -> Part:
    """Return a file as a part of a chat message: the name and content of a text file, or an image.

    Raises:
        BadRequest: the file is not in the request, is not valid base64, or is neither text nor an image.
    """
    if not file.file_data:
        raise BadRequest(
            f"{path}: a file must be given as file_data",
            param=path,
            hints=("The gateway stores no files, and fetches none from URLs.",),
        )
    media_type, content = _decode_data(file.file_data, path)
    if media_type.startswith("image/"):
        encoded = base64.b64encode(content).decode()
        return ImagePart(ImageUrl(f"data:{media_type};base64,{encoded}"))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        kind = media_type or "no media type"
        raise BadRequest(
            f"{path}: the file {file.filename or ''!r} ({kind}) is not UTF-8 text",
            param=path,
            hints=("Send the text of the document, or its pages as images.",),
        )
    return TextPart(f"{file.filename}\n\n{text}" if file.filename else text)


def _decode_data(data: str, path: str) -> tuple[str, bytes]:
    """Return the media type, empty if there is none, and the content."""
    head, comma, rest = data.partition(",")
    is_url = bool(comma) and head.startswith("data:")
    options = head.removeprefix("data:").lower().split(";") if is_url else [""]
    if is_url and "base64" not in options[1:]:
        if len(rest) > _MAX_PERCENT_ENCODED:
            raise BadRequest(
                f"{path}.file_data: more than {_MAX_PERCENT_ENCODED} characters must be base64",
                param=f"{path}.file_data",
            )
        return options[0], unquote_to_bytes(rest)
    try:
        return options[0], base64.b64decode(rest if is_url else data, validate=True)
    except ValueError:
        raise BadRequest(f"{path}.file_data: not valid base64", param=f"{path}.file_data") from None
