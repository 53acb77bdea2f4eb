"""Writes tiny models that real engines can load, with random weights and a real tokenizer, a few MB in size.

The weights are noise from a seed, but the answers are readable: one feature of the hidden state is constant (no layer
writes to it), and the output layer uses it as a bias, for which the llama architecture has no tensor. It makes
syllables likely, every other token practically impossible, and the end of an answer as likely as `answer_tokens`
requires.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_FEATURE = math.sqrt(2.0)
"""Magnitude of the constant feature relative to the noise, in units of the hidden state's norm."""


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    tokens: tuple[str, ...]
    merges: tuple[str, ...]
    syllables: range
    """Ids of the syllables, the tokens that answers consist of."""


def write_tiny_gguf(
    path: Path,
    *,
    seed: int = 0,
    name: str = "tiny",
    layers: int = 2,
    hidden: int = 128,
    feed_forward: int = 384,
    heads: int = 4,
    context: int = 4096,
    answer_tokens: int | None = None,
) -> Path:
    """Write a GGUF file with the llama architecture, which mistral.rs and llama-server can load.

    With the defaults the file has about 2 MB; it grows by `layers * hidden * (4 * hidden + 3 * feed_forward)` times
    four bytes.

    Args:
        path: the file to write; its directory is created.
        seed: seed of the random weights.
        name: `general.name` inside the file.
        layers: number of transformer blocks.
        hidden: size of the hidden state, a multiple of `heads`.
        feed_forward: size of the feed-forward layers.
        heads: attention heads.
        context: the maximum context length in the file, in tokens.
        answer_tokens: average length of sampled answers; None if they never end by themselves.

    Returns:
        The path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    vocabulary = _vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    try:
        writer.add_name(name)
        writer.add_context_length(context)
        writer.add_embedding_length(hidden)
        writer.add_block_count(layers)
        writer.add_feed_forward_length(feed_forward)
        writer.add_head_count(heads)
        writer.add_head_count_kv(heads)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(hidden // heads)
        writer.add_rope_freq_base(10_000.0)
        writer.add_vocab_size(len(vocabulary.tokens))
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        _add_tokenizer(writer, vocabulary)
        for tensor, weights in _weights(
            np.random.default_rng(seed), vocabulary, layers, hidden, feed_forward, answer_tokens
        ):
            writer.add_tensor(tensor, weights)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return path


def _bytes_as_characters() -> tuple[str, ...]:
    """Return GPT-2's table: each byte as a printable character; other bytes are mapped to 256 and up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = itertools.count(256)
    return tuple(chr(byte if byte in printable else next(shifted)) for byte in range(256))


def _vocabulary() -> _Vocabulary:
    """Return all bytes, then syllables without and with a leading space, then the control tokens."""
    table = _bytes_as_characters()
    space = table[0x20]
    pairs = list(itertools.product("bdfgklmnprstvz", "aeiou"))
    syllables = [consonant + vowel for consonant, vowel in pairs]
    merges = [f"{consonant} {vowel}" for consonant, vowel in pairs]
    merges += [f"{space} {syllable}" for syllable in syllables]
    tokens = (*table, *syllables, *(space + syllable for syllable in syllables), *_CONTROL)
    return _Vocabulary(tokens, tuple(merges), range(len(table), len(tokens) - len(_CONTROL)))


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: _Vocabulary) -> None:
    ordinary = len(vocabulary.tokens) - len(_CONTROL)
    kinds = [gguf.TokenType.NORMAL] * ordinary + [gguf.TokenType.CONTROL] * len(_CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(kinds)
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_bos_token_id(vocabulary.tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(vocabulary.tokens.index("<|im_end|>"))
    writer.add_unk_token_id(vocabulary.tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(_CHATML)


def _weights(
    random: np.random.Generator,
    vocabulary: _Vocabulary,
    layers: int,
    hidden: int,
    feed_forward: int,
    answer_tokens: int | None,
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    def noise(rows: int, columns: int, scale: float) -> npt.NDArray[np.float32]:
        return (random.standard_normal((rows, columns)) * scale).astype(np.float32)

    ones = np.ones(hidden, dtype=np.float32)
    narrow = 1.0 / math.sqrt(hidden)
    embedding = noise(len(vocabulary.tokens), hidden, 1.0)
    embedding[:, 0] = math.sqrt(hidden)
    yield "token_embd.weight", embedding
    for layer in range(layers):
        prefix = f"blk.{layer}."
        yield prefix + "attn_norm.weight", ones
        yield prefix + "attn_q.weight", noise(hidden, hidden, narrow)
        yield prefix + "attn_k.weight", noise(hidden, hidden, narrow)
        yield prefix + "attn_v.weight", noise(hidden, hidden, narrow)
        yield prefix + "attn_output.weight", _mute(noise(hidden, hidden, narrow))
        yield prefix + "ffn_norm.weight", ones
        yield prefix + "ffn_gate.weight", noise(feed_forward, hidden, narrow)
        yield prefix + "ffn_up.weight", noise(feed_forward, hidden, narrow)
        down = noise(hidden, feed_forward, 1.0 / math.sqrt(feed_forward))
        yield prefix + "ffn_down.weight", _mute(down)
    yield "output_norm.weight", ones
    output = noise(len(vocabulary.tokens), hidden, narrow)
    output[:, 0] = _biases(vocabulary, answer_tokens) / (math.sqrt(hidden) / _FEATURE)
    yield "output.weight", output


def _mute(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Prevent a layer from writing to the constant feature."""
    weights[0, :] = 0.0
    return weights


def _biases(vocabulary: _Vocabulary, answer_tokens: int | None) -> npt.NDArray[np.float32]:
    """Return the bias of each token's logit."""
    biases = np.full(len(vocabulary.tokens), -30.0, dtype=np.float32)
    biases[vocabulary.syllables.start : vocabulary.syllables.stop] = 0.0
    if answer_tokens is not None:
        end = vocabulary.tokens.index("<|im_end|>")
        biases[end] = math.log(len(vocabulary.syllables) / answer_tokens)
    return biases
