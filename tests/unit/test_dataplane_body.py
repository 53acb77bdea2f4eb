"""Reading the model out of a body, and splicing another one in."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.errors import BadRequest, CortexError
from cortex_server.dataplane.body import read_head, with_model

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
    assert read_head(body.encode("utf-8", "surrogatepass")) == (model, stream)


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


@given(st.binary(max_size=60))
def test_any_bytes_give_a_head_or_a_client_error(body):
    """Garbage never becomes a server error."""
    with contextlib.suppress(BadRequest):
        assert read_head(body)[0]


@pytest.mark.parametrize("body", [b'{"model":null}', b'{"model":[]}', b'{"model":"a","stream":1}'])
def test_a_field_of_the_wrong_type_is_named(body):
    """The error says which field is at fault."""
    with pytest.raises(CortexError) as caught:
        read_head(body)
    assert caught.value.param in {"model", "stream"}
