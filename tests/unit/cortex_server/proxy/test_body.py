"""Reading the model out of a body, and splicing another one in."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cortex_common.errors import BadRequest, CortexError, MalformedBody
from cortex_server.proxy.adapters.request_body import (
    as_stream,
    read_fields,
    read_form,
    read_json,
    require_one_model,
    with_model,
    with_usage,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
NAMES = st.text(min_size=1)


@given(NAMES, st.booleans(), st.dictionaries(st.text(), JSON, max_size=4), st.booleans())
def test_model_and_stream_are_found_in_any_body(model, stream, rest, ascii_only):
    """Whatever else a body holds, and however its strings are written."""
    body = json.dumps(rest | {"model": model, "stream": stream}, ensure_ascii=ascii_only)
    head = read_fields(body.encode("utf-8", "surrogatepass"))
    assert (head.name, head.stream) == (model, stream)


@given(NAMES, NAMES, st.dictionaries(st.text(), JSON, max_size=4), st.booleans(), st.booleans())
def test_another_model_changes_nothing_else(old, new, rest, ascii_only, nested):
    """The new body decodes to the old one with the other name, even where the key stands again deeper inside."""
    whole = rest | {"model": old}
    if nested:
        whole |= {"metadata": {"model": old}, "text": f'"model": "{old}"'}
    body = json.dumps(whole, ensure_ascii=ascii_only).encode()
    assert json.loads(with_model(body, old, new)) == whole | {"model": new}


def test_the_rest_of_the_body_stays_byte_for_byte():
    """Spacing, number formats and key order survive a rename."""
    body = b'{ "t": 1.0e0,\n "model" :  "a", "z": [ ] }'
    assert with_model(body, "a", "b/c") == b'{ "t": 1.0e0,\n "model" :  "b/c", "z": [ ] }'


def test_a_model_key_written_with_escapes_is_renamed_too():
    """JSON allows the key to be spelt with escapes, while a plain one stands deeper inside."""
    body = b'{"mod\\u0065l": "a", "x": {"model": "a"}}'
    assert json.loads(with_model(body, "a", "b")) == {"model": "b", "x": {"model": "a"}}


@example(b'{"model":"m","x":' + b"[" * 5000)
@example(b"{}")
@example(b'{"model":""}')
@given(st.binary(max_size=60))
def test_any_bytes_give_a_model_or_a_client_error(body):
    """Garbage, and a body without a model, never become a server error."""
    with contextlib.suppress(BadRequest):
        _, fields = read_json(body)
        assert fields.name


@pytest.mark.parametrize("body", [b'{"model":[]}', b'{"model":"a","stream":1}'])
def test_a_field_of_the_wrong_type_is_named(body):
    """The error says which field is at fault."""
    with pytest.raises(CortexError) as caught:
        read_fields(body)
    assert caught.value.param in {"model", "stream"}


@given(NAMES, st.dictionaries(st.text(), JSON, max_size=4), st.sampled_from(["", " ", "\n\t"]))
def test_requesting_usage_or_a_stream_changes_nothing_else(model, rest, space):
    """All other fields keep their values, also where stream_options is null, or asks for something else."""
    rest = {k: v for k, v in rest.items() if k != "stream_options"} | {"model": model}
    asked = {"stream_options": {"include_usage": True}}
    for body in (rest, rest | {"stream_options": None}):
        written = (space + json.dumps(body)).encode()
        assert json.loads(with_usage(written)) == rest | asked
        assert json.loads(as_stream(written)) == rest | asked | {"stream": True}
    other = {"include_obfuscation": False}
    written = json.dumps(rest | {"stream_options": other | {"include_usage": False}}).encode()
    usage_option = {"stream_options": other | {"include_usage": True}}
    assert json.loads(with_usage(written)) == rest | usage_option


def form(model: str, boundary: str = "xYz") -> bytes:
    """Return a form as curl and the SDKs write it."""
    return (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="model.wav"\r\n'
        f"Content-Type: audio/wav\r\n\r\nRIFF name=model\r\n--{boundary}\r\n"
        f'Content-Disposition: form-data; name="model"\r\n\r\n{model}\r\n--{boundary}--\r\n'
    ).encode()


FORM = b"multipart/form-data; boundary=xYz"


def test_the_model_of_a_form_is_found_and_replaced():
    """Transcriptions name their model in a form field, beside a file that may hold anything."""
    read = read_form(form("whisper"), FORM)
    assert read.fields.name == "whisper"
    assert read.replace_model(form("whisper"), "whisper", "org/nick") == form("org/nick")


def test_a_model_of_the_query_is_added_to_a_form_without_one():
    """The engine gets the model that was checked."""
    read = read_form(b"--xYz--\r\n", FORM, "q")
    assert read_form(read.body, FORM).fields.name == read.fields.name == "q"
    assert read_form(form("whisper"), FORM, "q").fields.name == "whisper"


@pytest.mark.parametrize("body", [form("a").replace(b"--xYz--\r\n", b"") + form("b"), b"{}", b""])
def test_a_form_that_is_ambiguous_or_malformed_is_refused(body):
    """With the words of the parser."""
    with pytest.raises(MalformedBody, match="the form can't be read"):
        read_form(body, FORM)


def test_a_model_in_the_query_serves_where_the_body_names_none():
    """The body's own comes first."""
    body, fields = read_json(b'{"input":"x"}', "q")
    assert (json.loads(body), fields.name) == ({"input": "x", "model": "q"}, "q")
    assert read_json(b'{"model":"b"}', "q")[1].name == "b"


@pytest.mark.parametrize("key", ["MODEL", "Model", "modeL", "M\\u006fDEL"])
def test_other_spellings_of_model_are_rejected(key):
    """Go servers take them for `model`, so that another model would be used than the one that was checked."""
    with pytest.raises(BadRequest, match="write it `model`"):
        read_fields(b'{"model":"a","%b":"b"}' % key.encode())


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b"}',
        b'{"model":"a","x":{"model":1},"model":"a"}',
        b'{"\\u006dodel":"a","model":"b"}',
        b'{"mo\\u0064el":"a","x":[{"y":1}],"mode\\u006C":"b"}',
    ],
)
def test_two_models_are_rejected(body):
    """Engines differ in which of them they use."""
    with pytest.raises(BadRequest, match="several `model`"):
        require_one_model(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a"}',
        b'{"model":"a","x":{"model":"b"},"y":[{"model":"c"}]}',
        b'{"model":"a","messages":[{"content":"\\u006d \\"model\\": 1"}]}',
    ],
)
def test_a_model_deeper_inside_is_not_the_requests(body):
    """Tools and texts can contain the word."""
    require_one_model(body)
