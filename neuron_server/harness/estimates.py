"""Estimates of the memory that a load needs, from its weights and its context (pure functions)."""

from __future__ import annotations

from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import LoadSpec
from neuron_server.harness.base import MemoryEstimate
from neuron_server.harness.llama_arguments import cache_types, offloaded_share, option
from neuron_server.weights.index import WeightIndex

_MIN_CACHE_SHARE = 4
"""Without a known context, the KV cache gets this share (1/n) of the weights at least."""


def estimate_memory(spec: LoadSpec, index: WeightIndex, *, overhead_mb: int = 0) -> MemoryEstimate:
    """Return the estimate for an engine that keeps a KV cache of full length for each parallel request.

    Args:
        spec: the load.
        index: its weights.
        overhead_mb: MiB on each device in addition.
    """
    weights = index.weights_mb * 11 // 10
    if index.shape is None:
        cache = index.weights_mb // 3
    else:
        tokens = (spec.context or index.shape.context) * (spec.parallel or 1)
        cache = max(index.shape.kv_cache_mb(tokens), index.weights_mb // _MIN_CACHE_SHARE)
    shared = -(-(weights + cache) // spec.tensor_parallel)
    return MemoryEstimate(shared + overhead_mb)


def estimate_llama(
    spec: LoadSpec, kind: DeviceKind, index: WeightIndex, *, overhead_mb: int
) -> MemoryEstimate:
    """Return the estimate for llama-server, with the layers that its arguments leave in the host's RAM."""
    shape = index.shape
    if shape is None:
        shared = index.weights_mb * 6 // (5 * spec.tensor_parallel)
        return MemoryEstimate(shared + overhead_mb)
    tokens = (spec.context or shape.context) * (spec.parallel or 1 if spec.context else 1)
    cache = shape.kv_cache_mb(tokens, *cache_types(spec.args))
    compute = shape.compute_mb(_batch(spec))
    share = 1.0 if kind is DeviceKind.CPU else 1 - offloaded_share(spec.args, shape.layers)
    layers = index.weights_mb + cache
    on_device = round(layers * share)
    device_mb = -(-on_device // spec.tensor_parallel) + compute + overhead_mb
    return MemoryEstimate(device_mb, layers - on_device)


def _batch(spec: LoadSpec) -> int:
    value = option(spec.args, "-ub", "--ubatch-size")
    return int(value) if value is not None and value.isdecimal() else 512
