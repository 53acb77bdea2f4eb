from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from neuron_server.embedded_engine.gguf_header import chat_template
from neuron_server.embedded_engine.tiny_models import write_tiny_gguf


def written(path: Path, template: str | None) -> Path:
    """The head of a model, with values of each kind before its template."""
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
def test_a_template_is_found_among_values_of_each_kind(tmp_path: Path, template: str | None):
    """What the gguf package wrote is found, or found to be missing."""
    assert chat_template(written(tmp_path / "m.gguf", template)) == template


def test_it_is_what_the_package_reads(tmp_path: Path):
    """The template of a whole model is the one that the gguf package tells."""
    path = write_tiny_gguf(tmp_path / "m.gguf", seed=1)
    theirs = gguf.GGUFReader(path).fields["tokenizer.chat_template"].contents()

    assert chat_template(path) == theirs


@pytest.mark.parametrize("data", [b"", b"GGU", b"GGUF", b"GGUF\x01\0\0\0" + bytes(16)])
def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes):
    """An empty file, another one and an old version are each told as such."""
    (tmp_path / "m.gguf").write_bytes(data)

    with pytest.raises(ValueError, match=r"GGUF|empty|middle"):
        chat_template(tmp_path / "m.gguf")


def test_a_head_that_was_cut_is_refused(tmp_path: Path):
    """A download that broke off is an error with the file's name, wherever it broke."""
    whole = written(tmp_path / "whole.gguf", None).read_bytes()
    for length in range(24, 250, 7):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.gguf ends in the middle"):
            chat_template(tmp_path / "cut.gguf")
