"""Fields of forms, as servers read them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_http.multipart import FormError, find_field

TYPE = b"multipart/form-data; boundary=xYz"


def part(name: str, value: bytes = b"v", more: str = "") -> bytes:
    """Return a part with its delimiter."""
    head = f'--xYz\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def find(*parts: bytes, content_type: bytes = TYPE) -> str | None:
    """Return the model of a form."""
    found = find_field(b"".join(parts) + b"--xYz--\r\n", content_type, "model")
    return found.value if found else None


MODEL = part("model", b"whisper")


@pytest.mark.parametrize(
    "parts",
    [
        [part("file", b'RIFF name="model"', '; filename="a.wav"'), MODEL],
        [part("prompt", b'\r\nContent-Disposition: form-data; name="model"\r\n\r\nbig'), MODEL],
        [part("prompt", b" --xYz--\r\n\r\n--xY"), MODEL],
        [b'preamble name="model"\r\n\r\nbig\r\n', MODEL],
        [part("model_name", b"big"), part("Model", b"big"), MODEL],
        [part("file", b"", '; filename="name=\\"model\\"; x"'), MODEL],
        [MODEL.replace(b'"model"', b"model")],
        [MODEL.replace(b"--xYz\r\n", b"--xYz \t\r\n")],
        [MODEL, b"--xYz--\r\nepilogue " + part("model", b"big")],
    ],
    ids=lambda parts: parts[0][:40].decode("latin-1"),
)
def test_only_boundaries_delimit_parts(parts: list[bytes]):
    """Whatever files, prompts, preambles and epilogues contain, the model is the field's."""
    assert find(*parts) == "whisper"


@pytest.mark.parametrize(
    "parts",
    [
        [MODEL, MODEL],
        [MODEL, MODEL.replace(b'"model"', b"model")],
        [MODEL.replace(b'name="model"', b'name="prompt"; name="model"')],
        [MODEL.replace(b'name="model"', b"name*=utf-8''model")],
        [MODEL.replace(b'name="model"', b'name*0="mo"; name*1="del"')],
        [MODEL.replace(b"form-data; ", b"form-data;\r\n ")],
        [MODEL.replace(b"form-data; ", b"form-data;\n ")],
        [MODEL.replace(b"Content", b'Content-Disposition: form-data; name="x"\r\nContent', 1)],
        [MODEL.replace(b"--xYz\r\n", b"--xYzz\r\n")],
        [MODEL.replace(b'"model"', b'"model')],
        [part("model", b"\xff")],
        [b"--xYz\r\n\r\n" * 2000],
        [b"--xYz\r\n" + b"x: y\r\n" * 10_000 + b"\r\n\r\n"],
    ],
)
def test_forms_that_servers_read_differently_are_refused(parts: list[bytes]):
    """A field twice, two names of a part, encoded names, folded headers and half a boundary."""
    with pytest.raises(FormError):
        find(*parts)


@pytest.mark.parametrize("body", [b"", b"{}", MODEL, b"--xYz", b"--xYz\r\n", MODEL + b"--xYz"])
def test_a_form_has_to_be_complete(body: bytes):
    """A server might not see what comes after the place where it was cut."""
    with pytest.raises(FormError):
        find_field(body, TYPE, "model")


@pytest.mark.parametrize(
    ("content_type", "ok"),
    [
        (b'multipart/form-data; boundary="xYz"', True),
        (b"multipart/form-data; charset=utf-8; BOUNDARY=xYz", True),
        (b"multipart/form-data", False),
        (b"multipart/form-data; boundary=", False),
        (b"multipart/form-data; boundary=xYz; boundary=abc", False),
        (b'multipart/form-data; boundary="x', False),
        (b"multipart/form-data; boundary*=utf-8''xYz", False),
    ],
)
def test_the_boundary_is_the_content_types(content_type: bytes, ok: bool):
    """There has to be exactly one."""
    if ok:
        assert find(MODEL, content_type=content_type) == "whisper"
    else:
        with pytest.raises(FormError):
            find(MODEL, content_type=content_type)


@given(st.lists(st.tuples(st.sampled_from(["file", "prompt"]), st.binary(max_size=50)), max_size=5))
def test_a_replaced_value_is_all_that_changes(fields: list[tuple[str, bytes]]):
    """Everything around it stays byte for byte."""
    before = b"".join(part(name, value) for name, value in fields if b"\r\n--xYz" not in value)
    body = before + MODEL + b"--xYz--\r\n"
    found = find_field(body, TYPE, "model")
    assert found is not None
    assert found.replace(body, "org/é") == before + part("model", "org/é".encode()) + b"--xYz--\r\n"


@given(st.lists(st.sampled_from([b"--xYz", b"\r\n", b"--", b":", b'"', b";", b"name", b"=", b"x"])))
def test_any_bytes_are_a_form_or_an_error(pieces: list[bytes]):
    """Nothing else is raised."""
    with contextlib.suppress(FormError):
        find_field(b"".join(pieces), TYPE, "x")


def test_megabytes_of_anything_take_no_time():
    """96 KiB of one repeated header took seconds; all of these would take hours if they weren't linear."""
    for filler in (b"content-disposition: name=", b"\r\n--xY", b"\r\n\r\n", b';name="', b"-"):
        body = part("file", filler * (20_000_000 // len(filler))) + MODEL + b"--xYz--"
        found = find_field(body, TYPE, "model")
        assert found is not None
