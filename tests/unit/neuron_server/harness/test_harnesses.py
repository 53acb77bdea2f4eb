"""Command lines, environments and probes of the harnesses, without engines."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from cortex_common.config.neuron import COMMAND_FIELDS, HarnessEntry
from cortex_common.errors import BadRequest, ConfigError, NotSupported
from cortex_common.schema.engine_traits import (
    LLAMACPP,
    MISTRALRS,
    OPENAI,
    SGLANG,
    VLLM,
    EngineTraits,
)
from cortex_common.schema.hardware import Device, DeviceKind
from cortex_common.schema.instances import LoadSpec
from neuron_server.harness.base import AttachedHarness, MemoryEstimate, ProcessHarness
from neuron_server.harness.command import CommandHarness, fill, sum_series
from neuron_server.harness.llamacpp import LlamaCppHarness, parse_fit_params
from neuron_server.harness.mistralrs import MistralrsHarness, parse_models
from neuron_server.harness.probe import device_environment, engine_client
from neuron_server.harness.registry import HarnessRegistry
from neuron_server.process.supervisor import Launch, engine_environment
from neuron_server.weights.files import gguf_file, size_mb

GPUS = [
    Device(index=1, uuid="GPU-b", name="B", vram_total_mb=1),
    Device(index=3, uuid="GPU-d", name="D", vram_total_mb=1),
]
CPU = [Device(index=0, uuid="CPU-0", kind=DeviceKind.CPU, name="C", vram_total_mb=1)]
SPEC = LoadSpec(model_id="org/m", harness="h")


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """Provide the HTTP client that harnesses share."""
    async with engine_client() as client:
        yield client


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Provide an executable file."""
    path = tmp_path / "engine"
    path.touch(0o755)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Provide a 3 MiB file with the name of a GGUF file."""
    path = tmp_path / "weights" / "model.gguf"
    path.parent.mkdir()
    path.write_bytes(b"x" * 3 * 1024 * 1024)
    return path


@pytest.mark.parametrize(
    ("entry", "engine", "traits"),
    [
        (
            {"name": "embedded"},
            "embedded",
            EngineTraits(parallel_tool_calls=False, effort_names=MISTRALRS.effort_names),
        ),
        ({"name": "llama-vulkan", "kind": "llamacpp"}, "llamacpp", LLAMACPP),
        ({"name": "own", "kind": "mistralrs"}, "mistralrs", MISTRALRS),
        ({"name": "lab", "kind": "attach", "url": "http://127.0.0.1:1"}, "mistralrs", MISTRALRS),
        ({"name": "fast", "kind": "command", "preset": "vllm"}, "vllm", VLLM),
        ({"name": "fast", "kind": "command", "preset": "sglang"}, "sglang", SGLANG),
        ({"name": "own", "kind": "command", "command": ["own"]}, "command", OPENAI),
    ],
)
def test_a_harness_reports_its_engine_and_traits_whatever_its_name(
    entry: dict[str, object], engine: str, traits: EngineTraits, http: httpx.AsyncClient
):
    """Gateways depend on the engine, and two harnesses of one kind need different names."""
    registry = HarnessRegistry((HarnessEntry.model_validate(entry),), http)

    info = registry.info()[str(entry["name"])]
    assert (info.engine, info.traits) == (engine, traits)


def test_gpus_are_passed_by_uuid_in_bus_order():
    """Nothing depends on CUDA's default order, and an engine on the CPU sees no GPU."""
    assert device_environment(GPUS) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "GPU-b,GPU-d",
    }
    assert device_environment(CPU)["CUDA_VISIBLE_DEVICES"] == ""


def test_the_hosts_environment_is_filtered():
    """Engines see allowed variables of the host, those of their launch, and their markers."""
    host = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "LLAMA_ARG_PORT": "1",
        "AWS_SECRET": "s",
        "HF_TOKEN": "t",
    }
    launch = Launch(argv=("x",), env={"MINE": "1", "PATH": "/own"})
    environment = engine_environment(host, launch, {"CORTEX_INSTANCE": "i"})
    assert environment == {
        "PATH": "/own",
        "LC_ALL": "C",
        "HF_TOKEN": "t",
        "MINE": "1",
        "CORTEX_INSTANCE": "i",
    }


def test_unset_values_are_omitted_with_their_flag():
    """An optional argument of a template is omitted with the flag before it, and nothing else."""
    template = (
        "run",
        "{model}",
        "--context",
        "{context}",
        "--x={context}",
        "--on",
        "--n",
        "{port}",
    )
    values = {"model": "m", "context": None, "port": "1"}
    assert list(fill(template, values)) == ["run", "m", "--on", "--n", "1"]
    assert list(fill(template, values | {"context": "9"}))[2:5] == ["--context", "9", "--x=9"]
    assert list(fill(['{{"a": 1}}', '{{"a": "{model}"}}'], values)) == ['{"a": 1}', '{"a": "m"}']


def test_a_commands_environment_is_filled_in_like_its_arguments(http: httpx.AsyncClient):
    """Some engines read their port only from a variable; JSON in a variable is not changed."""
    env = {"AT": "{host}:{port}", "CTX": "{context}", "MORE": '{"port": {"a": 1}}'}
    entry = HarnessEntry(name="e", kind="command", command=("run",), env=env)
    started = CommandHarness(entry, http).launch(SPEC, GPUS[:1], "h", 81)
    filled = {name: started.env[name] for name in env}
    assert filled == {"AT": "h:81", "CTX": str(SPEC.context or ""), "MORE": env["MORE"]}


def test_command_templates_are_checked_at_startup(http: httpx.AsyncClient):
    """An empty command or an unknown field is a config error, not an error of the first load.

    `cortex config check` finds all of them except a preset without a command.
    """
    with pytest.raises(ConfigError, match="this preset needs a command") as rejected:
        CommandHarness(HarnessEntry(name="x", preset="comfyui"), http)
    assert "main.py" in rejected.value.hints[0]
    with pytest.raises(ValidationError, match="requires a command or a preset"):
        HarnessEntry(name="x", kind="command")
    with pytest.raises(ValidationError, match="unknown fields: modell "):
        HarnessEntry(name="x", command=("run", "{modell}"))
    for field in ("{port:05d}", "{port:{x}}", "{port!r}"):
        with pytest.raises(ValidationError, match=r"unknown fields: port[:!]"):
            HarnessEntry(name="x", command=("run", field))
    with pytest.raises(ValidationError, match=r"unknown fields: \{ .*double a literal brace"):
        HarnessEntry(name="x", command=("run", "{"))
    with pytest.raises(ValidationError, match="requires the engine's url"):
        HarnessEntry(name="attach")
    complete = HarnessEntry(name="x", command=("run", *(f"{{{f}}}" for f in COMMAND_FIELDS)))
    spec = LoadSpec(model_id="m", harness="x")
    assert CommandHarness(complete, http).launch(spec, GPUS, "127.0.0.1", 1).argv[0] == "run"


async def test_a_health_path_can_start_with_a_slash_or_not():
    """An unexpected status is reported, so that an operator can correct the path."""

    def engine(request: httpx.Request) -> httpx.Response:
        return httpx.Response({"/ready": 200, "/busy": 503}.get(request.url.path, 404))

    async with httpx.AsyncClient(transport=httpx.MockTransport(engine)) as http:
        for path, ready, stage in (
            ("ready", True, None),
            ("/ready", True, None),
            ("busy", False, "loading"),
            ("health", False, "answering 404 at /health"),
        ):
            entry = HarnessEntry(name="x", command=("run",), health_path=path)
            probe = await CommandHarness(entry, http).probe(
                LoadSpec(model_id="m", harness="x"), "http://127.0.0.1:1"
            )
            assert (probe.ready, probe.stage) == (ready, stage)


def test_presets_have_the_engines_settings(http: httpx.AsyncClient):
    """The presets of vLLM, SGLang and ComfyUI have their own flags, health paths and signals."""
    spec = LoadSpec(model_id="org/m", harness="vllm", context=4096, args=("--enforce-eager",))
    vllm = CommandHarness(HarnessEntry(name="vllm", preset="vllm"), http)
    argv = list(vllm.launch(spec, GPUS, "127.0.0.1", 8101).argv)
    assert argv[:3] == ["vllm", "serve", "org/m"]
    assert argv[argv.index("--tensor-parallel-size") + 1] == "2"
    assert argv[argv.index("--max-model-len") + 1] == "4096"
    assert "--quantization" not in argv
    assert argv[-1] == "--enforce-eager"
    assert vllm.capabilities.kinds == (DeviceKind.CUDA,)
    started = ("/opt/comfyui/main.py", "--port", "{port}")
    comfy = CommandHarness(HarnessEntry(name="comfy", preset="comfyui", command=started), http)
    assert comfy.capabilities.stop_signal is signal.SIGINT
    assert "/prompt" in comfy.capabilities.routes
    own = HarnessEntry(name="sgl", preset="sglang", stop_signal="QUIT", binary=Path("/opt/py"))
    sglang = CommandHarness(own, http)
    started = sglang.launch(SPEC, GPUS[:1], "h", 1)
    assert started.argv[:2] == ("/opt/py", "-m")
    assert started.env["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"] == "false"
    assert sglang.capabilities.stop_signal is signal.SIGQUIT


def test_vllm_is_limited_to_the_granted_memory(http: httpx.AsyncClient):
    """The limit is a share of the smallest GPU; it is omitted if no memory is set."""
    vllm = CommandHarness(HarnessEntry(name="vllm", preset="vllm"), http)
    gpus = [replace_total(GPUS[0], 24576), replace_total(GPUS[1], 81920)]
    spec = LoadSpec(model_id="org/m", harness="vllm", vram_mb=22000)
    argv = list(vllm.launch(spec, gpus, "127.0.0.1", 8101).argv)
    assert argv[argv.index("--gpu-memory-utilization") + 1] == "0.895"
    assert "--gpu-memory-utilization" not in vllm.launch(SPEC, gpus, "127.0.0.1", 8101).argv


def replace_total(device: Device, total_mb: int) -> Device:
    """Return a device with another memory size."""
    return device.model_copy(update={"vram_total_mb": total_mb})


def test_series_are_summed_over_labels():
    """Request counts are the sum over all labels of the named series; other values are ignored."""
    text = '# HELP a b\na{x="1"} 2\na{x="2"} 1.0\nab 7\nc 4\n'
    assert sum_series(text, ("a", "c")) == 7
    unusual = 'a{x="y z"} 2 1700000000000\na NaN\na +Inf\nc 1e0\na\na x\n'
    assert sum_series(unusual, ("a", "c")) == 3


@pytest.mark.parametrize(
    "listing",
    [
        b'{"data":{"a":1}}',
        b'{"data":[]}',
        b'{"data":["m"]}',
        b"[]",
        b"[" * 5000,
        b"\xff\xfe\x00",
    ],
    ids=range(6),
)
async def test_an_unusual_model_list_does_not_prevent_readiness(listing: bytes):
    """The list is read only for the context, and not every OpenAI-compatible server follows OpenAI's format."""

    def engine(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=listing if request.url.path == "/v1/models" else b"")

    spec = LoadSpec(model_id="m", harness="x", context=7)
    async with httpx.AsyncClient(transport=httpx.MockTransport(engine)) as http:
        harness = CommandHarness(HarnessEntry(name="x", command=("run",)), http)
        probe = await harness.probe(spec, "http://127.0.0.1:1")
    assert (probe.ready, probe.context) == (True, 7)


def test_llama_server_gets_explicit_settings(http: httpx.AsyncClient, program: Path, weights: Path):
    """The context is the sum over all slots, layers and split depend on the devices, and --alias is the model id."""
    harness = LlamaCppHarness(HarnessEntry(name="l", binary=program), http)
    spec = LoadSpec(model_id="org/m", harness="l", source=str(weights), context=1000, parallel=3)
    argv = " ".join(harness.launch(spec, GPUS, "127.0.0.1", 8102).argv)
    assert f"-m {weights}" in argv
    assert "--alias org/m --host 127.0.0.1 --port 8102 -c 3000 -np 3" in argv
    assert "-ngl 999 -sm layer -ts 1,1" in argv
    assert "-ngl 999 -sm none -mg 0" in " ".join(harness.launch(spec, GPUS[:1], "h", 1).argv)
    assert "-ngl 0" in " ".join(harness.launch(spec, CPU, "h", 1).argv)


async def test_slots_share_the_models_own_context(
    http: httpx.AsyncClient, tmp_path: Path, weights: Path
):
    """-c 0 would be divided by the number of slots; a build with a unified cache gives each slot all of it."""
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho '-kvu, --kv-unified  use single unified KV buffer'\n")
    program.chmod(0o755)
    harness = LlamaCppHarness(HarnessEntry(name="l", binary=program), http)
    await harness.prepare()
    spec = LoadSpec(model_id="m", harness="l", source=str(weights), parallel=3)
    argv = " ".join(harness.launch(spec, CPU, "h", 1).argv)
    assert "-c 0 -np 3 --kv-unified" in argv
    sized = spec.model_copy(update={"context": 1000})
    assert "--kv-unified" not in harness.launch(sized, CPU, "h", 1).argv


async def test_the_estimate_gets_the_launchs_devices_and_arguments(
    http: httpx.AsyncClient, tmp_path: Path, weights: Path
):
    """llama-fit-params sees the GPUs that the engine will see, and what its arguments move to the host's RAM."""
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\n")
    fit = tmp_path / "llama-fit-params"
    log = tmp_path / "log"
    fit.write_text(
        f'#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES $@" > {log}\necho "CUDA0 100 20 3"\necho "Host 7 2 1"\n'
    )
    for path in (program, fit):
        path.chmod(0o755)
    projector = tmp_path / "p.gguf"
    projector.write_bytes(b"x" * 2 * 1024 * 1024)
    harness = LlamaCppHarness(HarnessEntry(name="l", binary=program), http)
    args = ("--n-cpu-moe", "4", "--jinja", "--mmproj", str(projector))
    spec = LoadSpec(model_id="m", harness="l", source=str(weights), context=8, args=args)
    estimate = await harness.estimate(spec, DeviceKind.CUDA, GPUS[:1])
    assert estimate == MemoryEstimate(123 + 600 + 2, 10)
    printed = log.read_text()
    assert printed.startswith(f"{GPUS[0].uuid} -m {weights} -c 8")
    assert "--n-cpu-moe 4" in printed
    assert "--jinja" not in printed


def test_an_engine_in_a_container_has_commands_to_stop_and_to_find_it(http: httpx.AsyncClient):
    """The fields of the command are filled in there as well; doubled braces are the runtime's own."""
    entry = HarnessEntry(
        name="c",
        kind="command",
        command=("podman", "run", "--name", "cortex-{port}", "--env", "GPUS={device_uuids}"),
        stop_command=("podman", "stop", "cortex-{port}"),
        pid_command=("podman", "inspect", "--format", "{{{{.State.Pid}}}}", "cortex-{port}"),
    )
    launch = CommandHarness(entry, http).launch(
        LoadSpec(model_id="m", harness="c"), GPUS[:1], "h", 8101
    )
    assert launch.argv[-1] == f"GPUS={GPUS[0].uuid}"
    assert launch.stop_argv == ("podman", "stop", "cortex-8101")
    assert launch.pid_argv[-2:] == ("{{.State.Pid}}", "cortex-8101")


def test_llama_server_downloads_repositories(http: httpx.AsyncClient, program: Path):
    """A repository is passed as -hf with its quantization, and its file as -hff; it never starts as a router."""
    harness = LlamaCppHarness(HarnessEntry(name="l", binary=program), http)
    spec = LoadSpec(model_id="org/m-GGUF", harness="l", quant="Q4_K_M", file="m.gguf")
    argv = harness.launch(spec, CPU, "h", 1).argv
    assert argv[1:5] == ("-hf", "org/m-GGUF:Q4_K_M", "-hff", "m.gguf")
    assert harness.weights_mb(spec) is None


def test_fit_params_are_parsed_by_device():
    """The fullest GPU of the launch counts, the sum over other GPUs than those, or the host on the CPU."""
    printed = "CUDA0 100 20 3\nCUDA1 90 20 30\nHost 7 2 1\n"
    assert parse_fit_params(printed, DeviceKind.CUDA, 2) == MemoryEstimate(140, 10)
    assert parse_fit_params(printed, DeviceKind.CUDA, 1) == MemoryEstimate(263, 10)
    assert parse_fit_params("CUDA0 9 0 0\nCUDA0 1 0 0\n", DeviceKind.CUDA) == MemoryEstimate(10)
    assert parse_fit_params(printed, DeviceKind.CPU) == MemoryEstimate(10)
    assert parse_fit_params("no numbers", DeviceKind.CPU) is None


def test_mistralrs_gets_a_size_for_its_kv_cache(
    http: httpx.AsyncClient, program: Path, weights: Path
):
    """The KV cache is the grant minus weights and CUDA context, instead of 90% of the GPU."""
    harness = MistralrsHarness(HarnessEntry(name="r", binary=program), http)
    spec = LoadSpec(model_id="m", harness="r", source=str(weights), vram_mb=5000, parallel=4)
    argv = harness.launch(spec, GPUS[:1], "127.0.0.1", 8103).argv
    assert argv[argv.index("--pa-memory-mb") + 1] == str(5000 - 3 - 800)
    assert argv[argv.index("-m") + 1] == str(weights.parent)
    assert argv[argv.index("-f") + 1] == "model.gguf"
    assert argv[argv.index("--max-seqs") + 1] == "4"
    assert "--no-ui" in argv
    assert harness.served_as(spec) == "default"
    assert "--cpu" in harness.launch(spec, CPU, "h", 1).argv
    remote = LoadSpec(model_id="org/m", harness="r", quant="Q4_K_M")
    assert harness.launch(remote, CPU, "h", 1).argv[-3:] == ("--quant", "4", "--cpu")
    assert harness.served_as(remote) is None


async def test_mistralrs_flags_are_read_from_its_help(
    http: httpx.AsyncClient, tmp_path: Path, weights: Path
):
    """0.8 has no --no-ui and no --quant, and requires --format for GGUF; an upgrade is detected."""
    program = tmp_path / "mistralrs"
    program.write_text(
        "#!/bin/sh\necho '      --isq <ISQ>  --format <FORMAT>  --ui  --no-kv-cache'\n"
    )
    program.chmod(0o755)
    harness = MistralrsHarness(HarnessEntry(name="r", binary=program), http)
    await harness.prepare()
    local = harness.launch(LoadSpec(model_id="m", harness="r", source=str(weights)), CPU, "h", 1)
    assert local.argv[-5:] == ("--format", "gguf", "-f", "model.gguf", "--cpu")
    remote = harness.launch(LoadSpec(model_id="org/m", harness="r", quant="Q8_0"), CPU, "h", 1)
    assert " ".join(remote.argv[1:]) == "serve --host h -p 1 -m org/m --isq 8 --cpu"
    program.write_text("#!/bin/sh\necho '  --no-ui  --quant <LEVEL>  --isq <ISQ>'\n")
    os.utime(program, ns=(1, 1))
    await harness.prepare()
    upgraded = harness.launch(LoadSpec(model_id="org/m", harness="r", quant="Q8_0"), CPU, "h", 1)
    assert " ".join(upgraded.argv[5:]) == "1 --no-ui -m org/m --quant 8 --cpu"


def test_model_lists_of_mistralrs_are_parsed():
    """The synthetic default and adapters are ignored; an id that is listed twice is not loaded."""
    listed = {
        "data": [
            {"id": "default"},
            {"id": "a", "status": "loaded"},
            {"id": "b", "status": "reloading"},
            {"id": "b", "status": "loaded"},
            {"id": "lora", "status": "loaded", "parent": "a"},
        ]
    }
    assert parse_models(listed) == {"a": True, "b": False}
    assert parse_models(None) == {}


def test_a_missing_program_is_an_error_of_the_load(http: httpx.AsyncClient, weights: Path):
    """The error for an engine that is not installed names its path."""
    spec = LoadSpec(model_id="m", harness="x", source=str(weights))
    for build in (LlamaCppHarness, MistralrsHarness):
        harness = build(HarnessEntry(name="x", binary=Path("/nowhere/engine")), http)
        with pytest.raises(NotSupported, match="/nowhere/engine"):
            harness.launch(spec, CPU, "h", 1)


def test_a_missing_path_is_not_treated_as_a_repository(http: httpx.AsyncClient, program: Path):
    """Missing weights are an error; the engine never tries to download a path."""
    spec = LoadSpec(model_id="m", harness="x", source="/nowhere/m.gguf")
    for build in (LlamaCppHarness, MistralrsHarness):
        harness = build(HarnessEntry(name="x", binary=program), http)
        with pytest.raises(BadRequest, match="there is no file /nowhere"):
            harness.launch(spec, CPU, "h", 1)


def test_the_only_matching_gguf_file_is_found(tmp_path: Path, weights: Path):
    """A directory can be given for its only file; with several, a name or a matching quantization is needed."""
    source = str(weights.parent)
    spec = LoadSpec(model_id="m", harness="x", source=source)
    assert gguf_file(spec) == weights
    (weights.parent / "other-Q4_K_M.gguf").write_bytes(b"y" * 1024 * 1024)
    with pytest.raises(BadRequest, match="exactly one matching GGUF"):
        gguf_file(spec)
    assert gguf_file(spec.model_copy(update={"quant": "Q4_K_M"})).name == "other-Q4_K_M.gguf"
    assert gguf_file(spec.model_copy(update={"file": "model.gguf"})) == weights
    with pytest.raises(BadRequest, match="there is no file"):
        gguf_file(LoadSpec(model_id="org/none", harness="x"))


def test_sizes_include_all_shards(tmp_path: Path):
    """A sharded model is found by its first file, and its size is the sum of all files."""
    for number in (1, 2, 3):
        (tmp_path / f"big-0000{number}-of-00003.gguf").write_bytes(b"x" * 1024 * 1024)
    spec = LoadSpec(model_id="m", harness="x", source=str(tmp_path))
    assert gguf_file(spec).name == "big-00001-of-00003.gguf"
    assert size_mb(gguf_file(spec)) == 3


async def test_the_registry_is_built_from_the_configuration(program: Path):
    """Each entry's kind selects its harness; errors for unknown kinds and names list those that exist."""
    entries = [
        HarnessEntry(name="embedded"),
        HarnessEntry(name="fast", kind="llamacpp", binary=program),
        HarnessEntry(name="shared", kind="attach", url="http://127.0.0.1:1"),
    ]
    registry = HarnessRegistry(entries, engine_client())
    try:
        assert registry.names == ("embedded", "fast", "shared")
        assert isinstance(registry.get("fast").harness, LlamaCppHarness)
        assert isinstance(registry.get("embedded").harness, ProcessHarness)
        assert [h.name for _, h in registry.attached_harnesses()] == ["shared"]
        assert isinstance(registry.get("shared").harness, AttachedHarness)
        assert not isinstance(registry.get("shared").harness, ProcessHarness)
        with pytest.raises(BadRequest, match="it has embedded, fast, shared"):
            registry.get("fats")
    finally:
        await registry.close()
    async with engine_client() as client:
        with pytest.raises(ConfigError, match="there is no kind 'nothing'"):
            HarnessRegistry([HarnessEntry(name="nothing")], client)


async def test_a_missing_engine_is_a_warning_until_it_is_installed(tmp_path: Path):
    """The warning says what is missing and what to do, and disappears once the program exists."""
    program = tmp_path / "llama-server"
    entries = [
        HarnessEntry(name="llamacpp", binary=program),
        HarnessEntry(name="vllm", kind="command", command=("no-such-engine", "{port}")),
        HarnessEntry(name="theirs", kind="attach", url="http://127.0.0.1:1"),
    ]
    registry = HarnessRegistry(entries, engine_client())
    try:
        llama, vllm = registry.warnings()
        assert {llama.code, vllm.code} == {"engine_missing"}
        assert llama.message == (
            f"llamacpp: there is no llama-server at {program} on this node: "
            "set binary of the harness in neuron.toml"
        )
        assert "no-such-engine" in vllm.message
        program.touch(0o755)
        assert registry.warnings() == (vllm,)
    finally:
        await registry.close()


async def test_an_engine_that_is_not_executable_is_a_warning(tmp_path: Path):
    """The warning for a program without execute permission says how to fix it."""
    program = tmp_path / "llama-server"
    program.touch(0o644)
    registry = HarnessRegistry([HarnessEntry(name="llamacpp", binary=program)], engine_client())
    try:
        (warning,) = registry.warnings()
        assert warning.code == "engine_missing"
        assert warning.message == (
            f"llamacpp: {program} is not executable for the neuron's user: `chmod a+x {program}`"
        )
        program.chmod(0o755)
        assert registry.warnings() == ()
    finally:
        await registry.close()
