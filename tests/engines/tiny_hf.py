"""Writes a tiny model in Hugging Face format: a Llama with random weights and a byte-level tokenizer."""

from __future__ import annotations

import json
import random
import struct
from array import array
from pathlib import Path

HIDDEN, INNER, LAYERS, HEAD = 128, 256, 2, 64
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def write_tiny_hf(directory: Path, seed: int = 1) -> Path:
    """Write configuration, tokenizer and a megabyte of weights; return the directory."""
    directory.mkdir(parents=True)
    vocabulary = {"<s>": 0, "</s>": 1} | {char: n for n, char in enumerate(_byte_chars(), 2)}
    _write(directory / "config.json", _config(len(vocabulary)))
    _write(directory / "tokenizer.json", _tokenizer(vocabulary))
    _write(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "chat_template": CHAT,
        },
    )
    _write_weights(directory / "model.safetensors", len(vocabulary), random.Random(seed))
    return directory


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _byte_chars() -> list[str]:
    """Return the printable characters that byte-level tokenizers use for bytes."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return [*map(chr, own), *(chr(256 + n) for n in range(len(others)))]


def _config(vocabulary: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HIDDEN // HEAD,
        "num_key_value_heads": HIDDEN // HEAD,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def _tokenizer(vocabulary: dict[str, int]) -> dict[str, object]:
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": n, "content": text, "special": True} | added
            for n, text in enumerate(("<s>", "</s>"))
        ],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def _write_weights(path: Path, vocabulary: int, source: random.Random) -> None:
    shapes = {
        "model.embed_tokens.weight": (vocabulary, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (vocabulary, HIDDEN),
    }
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in _LAYER.items()}
    header: dict[str, object] = {}
    data = b""
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) == 2 else 1)
        values = [1.0] * count if len(shape) == 1 else [source.gauss(0, 0.1) for _ in range(count)]
        begin, data = len(data), data + array("f", values).tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (begin, len(data))}
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


_LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
    "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
}
