"""The metrics of engines under common names."""

from __future__ import annotations

from cortex_common.schema.hardware import Health
from cortex_common.schema.instances import InstanceId, ModelId, NodeStatus
from neuron_server.engine_metrics import EngineReadings, parse_engine_metrics
from neuron_server.metrics import exposition

VLLM = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.7
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 100.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 40.0 1700000000
"""


def test_vllms_processes_are_added_up_and_their_caches_averaged():
    """With data parallelism each process has its own series."""
    values = parse_engine_metrics("vllm", VLLM)
    assert values["requests_running"] == 4
    assert values["requests_waiting"] == 2
    assert round(values["kv_cache_usage_ratio"], 3) == 0.6
    assert (values["prefix_cache_queries"], values["prefix_cache_hits"]) == (100, 40)


def test_other_engines_have_names_of_their_own():
    """llama.cpp reports no use of its cache; mistral.rs reports blocks."""
    llama = "llamacpp:requests_processing 2\nllamacpp:requests_deferred 5\n"
    assert parse_engine_metrics("llamacpp", llama) == {"requests_running": 2, "requests_waiting": 5}
    mistral = "mistralrs_kv_cache_blocks_used 30\nmistralrs_kv_cache_blocks_total 40\n"
    assert parse_engine_metrics("mistralrs", mistral) == {"kv_cache_usage_ratio": 0.75}
    sglang = 'sglang:num_running_reqs{model_name="m"} 1\nsglang:token_usage{model_name="m"} 0.25\n'
    assert parse_engine_metrics("sglang", sglang)["kv_cache_usage_ratio"] == 0.25


def test_values_that_are_no_numbers_are_ignored():
    """An engine's NaN or 1e999 does not spoil the node's metrics."""
    odd = "vllm:num_requests_running NaN\nvllm:num_requests_waiting 1e999\nvllm:x -1\n\x00{} z\n"
    assert parse_engine_metrics("vllm", odd) == {}
    assert parse_engine_metrics("unknown", VLLM) == {}


def test_they_are_exposed_with_instance_and_model():
    """A node's metrics have one series per instance."""
    readings = EngineReadings(InstanceId("i"), ModelId("m"), parse_engine_metrics("vllm", VLLM))
    text = exposition(NodeStatus(health=Health(uptime_secs=1.0)), (), (), (readings,), 0).decode()
    assert 'cortex_neuron_engine_requests_running{instance="i",model="m"} 4.0' in text
    assert 'cortex_neuron_engine_prefix_cache_hits_total{instance="i",model="m"} 40.0' in text
