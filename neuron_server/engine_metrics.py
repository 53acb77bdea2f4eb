"""Metrics of engines, under common names: requests, use of the KV cache, and hits of the prefix cache.

Sources: GET /metrics of vLLM, SGLang, llama.cpp (with --metrics) and mistral.rs. Gauges that an engine averages since
the last scrape are left out, because several readers would falsify them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cortex_common.schema.instances import InstanceId, ModelId

_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{[^\n]*\})?[ \t]+(\S+)", re.MULTILINE)
_MAX_TEXT = 4 * 1024 * 1024

GAUGES: Mapping[str, str] = {
    "requests_running": "Requests that an engine is processing",
    "requests_waiting": "Requests that wait in an engine's queue",
    "kv_cache_usage_ratio": "Share of an engine's KV cache in use",
}
COUNTERS: Mapping[str, str] = {
    "prompt_tokens": "Prompt tokens that an engine has processed",
    "generated_tokens": "Tokens that an engine has generated",
    "prefix_cache_queries": "Tokens or requests that an engine looked up in its prefix cache",
    "prefix_cache_hits": "Tokens or requests that an engine found in its prefix cache",
}

_SERIES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "vllm": {
        "requests_running": ("vllm:num_requests_running",),
        "requests_waiting": ("vllm:num_requests_waiting",),
        "kv_cache_usage_ratio": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        "prompt_tokens": ("vllm:prompt_tokens_total",),
        "generated_tokens": ("vllm:generation_tokens_total",),
        "prefix_cache_queries": ("vllm:prefix_cache_queries_total",),
        "prefix_cache_hits": ("vllm:prefix_cache_hits_total",),
    },
    "sglang": {
        "requests_running": ("sglang:num_running_reqs",),
        "requests_waiting": ("sglang:num_queue_reqs",),
        "kv_cache_usage_ratio": ("sglang:token_usage", "sglang:full_token_usage"),
        "prompt_tokens": ("sglang:prompt_tokens_total",),
        "generated_tokens": ("sglang:generation_tokens_total",),
        "prefix_cache_queries": ("sglang:prompt_tokens_total",),
        "prefix_cache_hits": ("sglang:cached_tokens_total",),
    },
    "llamacpp": {
        "requests_running": ("llamacpp:requests_processing",),
        "requests_waiting": ("llamacpp:requests_deferred",),
        "prompt_tokens": ("llamacpp:prompt_tokens_total",),
        "generated_tokens": ("llamacpp:tokens_predicted_total",),
        "prefix_cache_hits": ("llamacpp:prompt_tokens_cached_total",),
    },
    "mistralrs": {
        "requests_running": ("mistralrs_sequences_running",),
        "requests_waiting": ("mistralrs_sequences_waiting",),
        "prefix_cache_queries": ("mistralrs_prefix_cache_lookups_total",),
        "prefix_cache_hits": ("mistralrs_prefix_cache_hits_total",),
    },
}
"""Names of the series by engine and common name; of several, the first that the engine has."""

_MEANS = frozenset({"kv_cache_usage_ratio"})
"""What is averaged over the processes of an engine, rather than added up."""


@dataclass(frozen=True, slots=True)
class EngineReadings:
    """What an instance's engine reports about itself.

    Attributes:
        values: by the names of `GAUGES` and `COUNTERS`; what it does not report is missing.
    """

    instance: InstanceId
    model: ModelId
    values: Mapping[str, float]


def reports_metrics(engine: str) -> bool:
    """Return whether the metrics of a kind of engine are known."""
    return engine in _SERIES


def parse_engine_metrics(engine: str, text: str) -> dict[str, float]:
    """Return the values of an engine's metrics by common name; values that are not finite numbers are ignored."""
    found: dict[str, list[float]] = {}
    for match in _SAMPLE.finditer(text[:_MAX_TEXT]):
        try:
            value = float(match[2])
        except ValueError:
            continue
        if math.isfinite(value) and value >= 0:
            found.setdefault(match[1], []).append(value)
    values: dict[str, float] = {}
    for name, candidates in _SERIES.get(engine, {}).items():
        samples = next((found[series] for series in candidates if series in found), None)
        if samples is not None:
            values[name] = sum(samples) / (len(samples) if name in _MEANS else 1)
    blocks = found.get("mistralrs_kv_cache_blocks_total", [0.0])[0]
    if engine == "mistralrs" and blocks > 0:
        used = found.get("mistralrs_kv_cache_blocks_used", [0.0])[0]
        values["kv_cache_usage_ratio"] = min(1.0, used / blocks)
    return values
