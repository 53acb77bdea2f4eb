from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from neuron_server.embedded_engine.gguf_header import chat_template
from neuron_server.embedded_engine.tiny_models import write_tiny_gguf


def write_header(path: Path, template: str | None) -> Path:
    """Write a model's header, with values of each type before its template."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.u8", 1)
    writer.add_int16("a.i16", -1)
    writer.add_float64("a.f64", 0.5)
    writer.add_bool("a.bool", val=True)
    writer.add_string("a.string", "süß")
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_token_list(["a", "", "tokenizer.chat_template"])
    if template is not None:
        writer.add_chat_template(template)
    writer.add_uint64("z.u64", 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("template", [None, "{{ 'süß 😀' }}"])
def test_a_template_is_found_among_values_of_each_type(tmp_path: Path, template: str | None):
    """A template written by the gguf package is found; without one, the result is None."""
    assert chat_template(write_header(tmp_path / "m.gguf", template)) == template


def test_the_template_equals_that_of_the_gguf_package(tmp_path: Path):
    """The template of a complete model is the one that the gguf package reads."""
    path = write_tiny_gguf(tmp_path / "m.gguf", seed=1)
    expected = gguf.GGUFReader(path).fields["tokenizer.chat_template"].contents()

    assert chat_template(path) == expected


@pytest.mark.parametrize("data", [b"", b"GGU", b"GGUF", b"GGUF\x01\0\0\0" + bytes(16)])
def test_other_files_are_rejected(tmp_path: Path, data: bytes):
    """An empty file, another format and an old version are errors."""
    (tmp_path / "m.gguf").write_bytes(data)

    with pytest.raises(ValueError, match=r"GGUF|empty|middle"):
        chat_template(tmp_path / "m.gguf")


def test_a_truncated_header_is_rejected(tmp_path: Path):
    """A truncated download is an error with the file's name, wherever it was truncated."""
    whole = write_header(tmp_path / "whole.gguf", None).read_bytes()
    for length in range(24, 250, 7):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.gguf ends in the middle"):
            chat_template(tmp_path / "cut.gguf")
