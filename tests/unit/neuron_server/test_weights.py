"""Which weights are loaded, how large they are, and what memory they need."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rigs.server import serving

from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import LoadSpec
from neuron_server.harness.estimates import estimate_llama, estimate_memory
from neuron_server.harness.llama_arguments import extra_files, memory_arguments
from neuron_server.weights.files import gguf_file, size_mb
from neuron_server.weights.index import WeightIndex, find_weights
from neuron_server.weights.selection import loaded_files
from neuron_server.weights.shape import shape_from_config, shape_from_gguf

MIB = 1024 * 1024
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "vocab_size": 128_000,
    "intermediate_size": 14_336,
}
OFFLINE = {"HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize(
    ("files", "loaded"),
    [
        (
            ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
            ("consolidated.safetensors", "optimizer.pt", "training_args.bin", "m-Q4_K_M.gguf"),
        ),
        (("model.safetensors",), ("model.fp16.safetensors", "adapter_model.safetensors")),
        (("consolidated.00.safetensors",), ("checkpoint-10/optimizer.pt",)),
        (("pytorch_model.bin",), ("optimizer.bin", "rng_state.pth", "scheduler.pt")),
        (("m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"), ("mmproj-F16.gguf",)),
        (("unet/model.safetensors", "vae/model.safetensors"), ("unet/model.bin",)),
    ],
    ids=range(6),
)
def test_weights_are_counted_once(files: tuple[str, ...], loaded: tuple[str, ...]):
    """Of shards, a consolidated copy, an export and an optimizer's state, the engine loads one."""
    assert loaded_files(dict.fromkeys((*files, *loaded), 10)) == frozenset(files)


@given(st.dictionaries(st.text("am-/.0123456789", min_size=1), st.integers(0, 9)), st.text())
def test_any_listing_has_a_selection(sizes: dict[str, int], quant: str):
    """Odd names are no error, and what is selected exists."""
    assert loaded_files(sizes, quant) <= sizes.keys()


def test_a_projector_is_no_model(tmp_path: Path):
    """A directory with one model and its projector has one model."""
    for name in ("model-Q4_K_M.gguf", "mmproj-model-f16.gguf"):
        (tmp_path / name).write_bytes(b"x" * MIB)
    spec = LoadSpec(model_id="m", harness="l", source=str(tmp_path))
    assert gguf_file(spec).name == "model-Q4_K_M.gguf"
    assert size_mb(tmp_path) == 1


def test_the_kv_cache_depends_on_layers_heads_and_type():
    """Llama 3 8B: 32 layers with 8 heads of 128, keys and values of 2 bytes: 128 KiB per token."""
    shape = shape_from_config(CONFIG)
    assert shape is not None
    assert shape.kv_cache_mb(8192) == 1024
    assert shape.kv_cache_mb(8192, "q8_0", "q8_0") == 544
    gemma = shape_from_config(CONFIG | {"model_type": "gemma3_text", "sliding_window": 1024})
    assert gemma is not None
    assert gemma.kv_cache_mb(8192) < 300
    assert shape_from_config({"num_hidden_layers": "32"}) is None


def test_a_gguf_header_has_the_same_shape():
    """Heads can differ by layer, and the vocabulary is the length of an array."""
    header: Mapping[str, object] = {
        "general.architecture": "llama",
        "llama.block_count": 32,
        "llama.embedding_length": 4096,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": [8] * 32,
        "llama.context_length": 8192,
        "llama.feed_forward_length": 14_336,
        "tokenizer.ggml.tokens": 128_000,
    }
    assert shape_from_gguf(header) == shape_from_config(CONFIG)
    assert shape_from_gguf({}) is None


def test_an_estimate_has_the_context_of_each_slot():
    """Twice the slots need twice the cache; with layers in RAM, the rest is on the host's account."""
    index = WeightIndex(4000, True, shape_from_config(CONFIG))
    base = {"model_id": "m", "harness": "l", "context": 8192}
    two = LoadSpec.model_validate(base | {"parallel": 2})
    one = LoadSpec.model_validate(base)
    cuda = DeviceKind.CUDA
    sizes = [estimate_llama(s, cuda, index, overhead_mb=0).device_mb for s in (one, two)]
    assert sizes[1] - sizes[0] == 1024
    half = one.model_copy(update={"args": ("-ngl", "16")})
    estimate = estimate_llama(half, cuda, index, overhead_mb=0)
    assert estimate.host_mb == (4000 + 1024) // 2
    split = one.model_copy(update={"tensor_parallel": 2})
    assert estimate_memory(split, index).device_mb == -(-(4400 + 1024) // 2)


def test_only_arguments_about_memory_are_passed_to_llama_fit_params():
    """It rejects those of the server, such as --jinja."""
    args = ("--jinja", "-ot", "exps=CPU", "-ctk", "q8_0", "-fa", "--pooling", "cls", "-ngl", "-1")
    assert list(memory_arguments(args)) == ["-ot", "exps=CPU", "-ctk", "q8_0", "-fa", "-ngl", "-1"]
    assert extra_files(("--mmproj", "/p.gguf", "-md", "/d.gguf")) == ["/p.gguf", "/d.gguf"]


async def test_a_repository_is_found_in_the_hubs_cache(tmp_path: Path):
    """A complete snapshot has a size and a shape; a download in progress is not used."""
    folder = tmp_path / "models--org--m"
    snapshot = folder / "snapshots" / "abc"
    for directory in (snapshot, folder / "refs", folder / "blobs"):
        directory.mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (snapshot / "model.safetensors").write_bytes(b"x" * 3 * MIB)
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    spec = LoadSpec(model_id="org/m", harness="v")
    env = OFFLINE | {"HF_HUB_CACHE": str(tmp_path)}
    index = await find_weights(spec, env)
    assert index == WeightIndex(3, False, shape_from_config(CONFIG))
    (folder / "blobs" / "x.incomplete").touch()
    assert await find_weights(spec, env) is None


def _header(path: Path) -> bytes:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(32)
    writer.add_embedding_length(4096)
    writer.add_head_count(32)
    writer.add_head_count_kv(8)
    writer.add_context_length(8192)
    writer.add_feed_forward_length(14_336)
    writer.add_token_list(["a"] * 1000)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[str]:
    """Provide a hub with a GGUF repository, and one with shards."""
    tree = {
        "org/gguf": {"m-Q4_K_M.gguf": 5 * MIB, "m-Q8_0.gguf": 9 * MIB, "mmproj.gguf": MIB},
        "org/shards": {"model-1-of-2.safetensors": 2 * MIB, "model-2-of-2.safetensors": 2 * MIB},
    }
    header = _header(tmp_path / "header.gguf")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            path = line.split()[1].decode().partition("?")[0]
            while (await reader.readline()).strip():
                pass
            body, status = b"{}", "404 Not Found"
            for repository, files in tree.items():
                listing = [{"type": "file", "path": p, "size": s} for p, s in files.items()]
                if path == f"/api/models/{repository}/tree/main":
                    body, status = json.dumps(listing).encode(), "200 OK"
            if path.endswith(".gguf"):
                body, status = header, "206 Partial Content"
            elif path.endswith("config.json"):
                body, status = json.dumps(CONFIG).encode(), "200 OK"
            writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode())
            writer.write(body)
            await writer.drain()

    async with serving(serve) as url:
        yield url


async def test_the_hub_knows_sizes_and_headers(hub: str, tmp_path: Path):
    """Of several quantizations the one that llama.cpp downloads counts; an unknown repository has no size."""
    env = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path / "none")}

    async def find(model: str, **more: str) -> WeightIndex | None:
        return await find_weights(LoadSpec(model_id=model, harness="v", **more), env)  # type: ignore[arg-type]

    quantized = await find("org/gguf")
    assert quantized is not None
    assert (quantized.weights_mb, quantized.is_gguf) == (5, True)
    assert quantized.shape is not None
    assert quantized.shape.kv_cache_mb(8192) == 1024
    larger = await find("org/gguf", quant="Q8_0")
    assert larger is not None
    assert larger.weights_mb == 9
    shards = await find("org/shards")
    assert shards == WeightIndex(4, False, shape_from_config(CONFIG))
    assert await find("org/missing") is None
    assert await find_weights(LoadSpec(model_id="org/shards", harness="v"), env | OFFLINE) is None
