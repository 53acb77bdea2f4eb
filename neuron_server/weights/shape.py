"""The parts of a model's architecture that decide how much memory its context needs.

Sources: the header of a GGUF file (keys of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), or config.json
of a Hugging Face repository.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cortex_common.units import bytes_to_mib

Metadata = Mapping[str, object]

_BYTES_PER_ELEMENT = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
"""Bytes of an element in each type of llama.cpp's KV cache."""
_LOCAL_LAYERS = {"gemma2": 1 / 2, "gemma3": 5 / 6, "gpt-oss": 1 / 2, "gpt_oss": 1 / 2}
"""Share of layers with sliding-window attention, for architectures whose headers do not contain it."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the memory of a model's context depends on.

    Attributes:
        layers: number of layers.
        key_elements: elements of the keys of one token, over all layers.
        value_elements: elements of its values.
        context: tokens that the model was trained with.
        vocabulary: number of tokens in its vocabulary; 0 if unknown.
        feed_forward: width of its feed-forward layers; 0 if unknown.
        window: tokens that layers with sliding-window attention keep; None if there are none.
        local_share: share of such layers.
    """

    layers: int
    key_elements: int
    value_elements: int
    context: int
    vocabulary: int = 0
    feed_forward: int = 0
    window: int | None = None
    local_share: float = 0.0

    def kv_cache_mb(self, tokens: int, key_type: str = "f16", value_type: str = "f16") -> int:
        """Return the MiB of a KV cache for some tokens, over all slots."""
        per_token = self.key_elements * _BYTES_PER_ELEMENT.get(key_type, 2.0)
        per_token += self.value_elements * _BYTES_PER_ELEMENT.get(value_type, 2.0)
        local_tokens = min(tokens, self.window) if self.window is not None else tokens
        share = self.local_share
        return bytes_to_mib(math.ceil(per_token * (tokens * (1 - share) + local_tokens * share)))

    def compute_mb(self, batch: int = 512) -> int:
        """Return the MiB of buffers for the intermediate results of one batch."""
        return bytes_to_mib(batch * 4 * (self.vocabulary + 4 * self.feed_forward))


def shape_from_gguf(metadata: Metadata) -> ModelShape | None:
    """Return the shape from a GGUF header; None if it lacks something."""
    arch = metadata.get("general.architecture")
    layers = _number(metadata, f"{arch}.block_count")
    embedding = _number(metadata, f"{arch}.embedding_length")
    heads = metadata.get(f"{arch}.attention.head_count")
    context = _number(metadata, f"{arch}.context_length")
    if not layers or not embedding or not heads or not context:
        return None
    most_heads = max(heads) if isinstance(heads, list) else heads
    kv_heads = metadata.get(f"{arch}.attention.head_count_kv", heads)
    total_heads = sum(kv_heads) if isinstance(kv_heads, list) else _int(kv_heads) * layers
    head_size = embedding // max(1, _int(most_heads))
    key_length = _number(metadata, f"{arch}.attention.key_length") or head_size
    value_length = _number(metadata, f"{arch}.attention.value_length") or head_size
    window = _number(metadata, f"{arch}.attention.sliding_window")
    vocabulary = metadata.get("tokenizer.ggml.tokens")
    feed_forward = metadata.get(f"{arch}.feed_forward_length")
    return ModelShape(
        layers=layers,
        key_elements=total_heads * key_length,
        value_elements=total_heads * value_length,
        context=context,
        vocabulary=_int(vocabulary),
        feed_forward=max(feed_forward) if isinstance(feed_forward, list) else _int(feed_forward),
        window=window,
        local_share=_LOCAL_LAYERS.get(str(arch), 0.0) if window else 0.0,
    )


def shape_from_config(config: Metadata) -> ModelShape | None:
    """Return the shape from a Hugging Face config.json; None if it lacks something."""
    text = config.get("text_config")
    if isinstance(text, dict):
        config = {**config, **text}
    layers = _number(config, "num_hidden_layers")
    hidden = _number(config, "hidden_size")
    heads = _number(config, "num_attention_heads")
    context = _number(config, "max_position_embeddings")
    if not layers or not hidden or not heads or not context:
        return None
    head_size = _number(config, "head_dim") or hidden // heads
    latent = _number(config, "kv_lora_rank")
    if latent:  # multi-head latent attention keeps one compressed vector per token and layer
        elements = layers * (latent + (_number(config, "qk_rope_head_dim") or 0))
        keys, values = elements, 0
    else:
        kv_heads = _number(config, "num_key_value_heads") or heads
        keys = values = layers * kv_heads * head_size
    kind = str(config.get("model_type", "")).removesuffix("_text")
    window = _number(config, "sliding_window")
    return ModelShape(
        layers=layers,
        key_elements=keys,
        value_elements=values,
        context=context,
        vocabulary=_number(config, "vocab_size") or 0,
        feed_forward=_number(config, "intermediate_size") or 0,
        window=window,
        local_share=_LOCAL_LAYERS.get(kind, 0.0) if window else 0.0,
    )


def _number(values: Metadata, key: str) -> int | None:
    found = values.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None


def _int(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
