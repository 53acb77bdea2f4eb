"""State machine, admission, progress, ports and exit reasons: pure functions."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_common.errors import Conflict, Unavailable
from cortex_common.schema.instances import InstanceId, InstanceState, LoadSpec
from neuron_server.instances.state_machine import (
    CRASH_RESET_S,
    MAX_CRASHES,
    Instance,
    advance,
    is_same_work,
    load_deadline_s,
    load_progress,
    restart_delay_s,
)
from neuron_server.memory.admission import join_existing
from neuron_server.process.exit_reason import ExitKind, classify
from neuron_server.process.ports import choose_port
from neuron_server.views import model_info

SPEC = LoadSpec(model_id="m", harness="h")


def instance(state: InstanceState = InstanceState.LOADING, **more) -> Instance:
    """Return an instance in a state."""
    return Instance(InstanceId("i"), SPEC, (0,), 100, 8100, state=state, **more)


@given(st.lists(st.sampled_from(InstanceState), max_size=12))
def test_transitions_follow_the_state_machine(path):
    """For any sequence, ready follows loading or draining, draining follows ready, and stopped follows stopping."""
    current = instance()
    seen = [current.state]
    for state in path:
        try:
            current = advance(current, state)
        except Conflict:
            continue
        seen.append(current.state)
    if InstanceState.STOPPED in seen:
        assert seen.index(InstanceState.STOPPED) == len(seen) - 1
        assert seen[-2] is InstanceState.STOPPING
    for before, after in itertools.pairwise(seen):
        if after is InstanceState.READY:
            assert before in {InstanceState.LOADING, InstanceState.DRAINING}
        if after is InstanceState.DRAINING:
            assert before is InstanceState.READY


def test_progress_is_cleared_after_a_load():
    """Only a loading instance has a stage and progress."""
    loading = instance(stage="reading", progress=0.5)
    ready = advance(loading, InstanceState.READY)
    assert (ready.stage, ready.progress) == (None, None)


def test_a_failed_load_is_not_retried():
    """Only an instance that was ready before is restarted after a crash."""
    assert restart_delay_s(instance(), now=50.0) is None


def test_restart_delays_double_up_to_a_maximum_count():
    """The delay doubles with each consecutive crash, and after the last allowed crash the instance stays failed."""
    current, delays = instance(InstanceState.READY, ready_at=100.0), []
    while (restart := restart_delay_s(current, 110.0)) is not None:
        delays.append(restart[0])
        current = dataclasses.replace(current, crashes=restart[1])
    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert len(delays) == MAX_CRASHES


def test_crashes_are_reset_after_a_healthy_period():
    """A crash after a long healthy period is counted as the first."""
    crashed = instance(InstanceState.READY, ready_at=100.0, crashes=MAX_CRASHES)
    assert restart_delay_s(crashed, 100.0 + CRASH_RESET_S) == (1.0, 1)


def test_same_work_ignores_ids_and_unspecified_devices():
    """Specs are the same work if only the instance ids, or devices left to the node, differ."""
    named = SPEC.model_copy(update={"instance_id": "x"})
    on_one = SPEC.model_copy(update={"devices": (1,)})
    on_two = SPEC.model_copy(update={"devices": (2,)})
    assert is_same_work(SPEC, named)
    assert is_same_work(SPEC, on_one)
    assert not is_same_work(on_one, on_two)
    assert not is_same_work(SPEC, SPEC.model_copy(update={"context": 1}))


def test_a_load_joins_an_instance_that_serves_it():
    """The same work joins; another id needs another instance; the same id with other work is a conflict."""
    ready = instance(InstanceState.READY)
    answer = join_existing(SPEC, ready)
    assert answer is not None
    assert (answer.status, answer.instance_id) == ("loaded", "i")
    assert join_existing(SPEC.model_copy(update={"instance_id": "other"}), ready) is None
    assert join_existing(SPEC.model_copy(update={"context": 9}), ready) is None
    assert join_existing(SPEC, instance(InstanceState.STOPPING)) is None
    with pytest.raises(Conflict, match="a different spec"):
        join_existing(SPEC.model_copy(update={"instance_id": "i", "context": 9}), ready)
    with pytest.raises(Conflict, match="about to end"):
        join_existing(
            SPEC.model_copy(update={"instance_id": "i"}), instance(InstanceState.STOPPING)
        )


def test_a_load_joins_an_instance_that_its_caller_does_not_know():
    """An instance unknown to the caller serves its load, whatever its size; for a known one, another is started."""
    mine = SPEC.model_copy(update={"instance_id": "mine", "reserve_mb": 7, "devices": (0,)})
    theirs = instance(InstanceState.LOADING)
    answer = join_existing(mine, theirs, known=[])
    assert answer is not None
    assert (answer.status, answer.instance_id) == ("loading", "i")
    assert join_existing(mine, theirs, known=["i"]) is None
    assert join_existing(mine.model_copy(update={"context": 9}), theirs, known=[]) is None
    assert join_existing(mine, instance(InstanceState.STOPPING), known=[]) is None


def test_the_deadline_of_a_load_grows_with_its_weights():
    """Large weights, unknown weights and slow past loads get more time."""
    small, large = load_deadline_s(100, None), load_deadline_s(200_000, None)
    assert 100 < small < 130
    assert large > 4000
    assert load_deadline_s(None, None) > 3600
    assert load_deadline_s(100, 1000.0) == 3000.0


@given(
    st.floats(0, 1e6), st.none() | st.floats(0.1, 1e5), st.lists(st.integers(0, 9000), max_size=1)
)
def test_estimated_progress_never_exceeds_95_percent(elapsed, expected, measured):
    """A load that is not ready is at most 95% complete, whatever is known."""
    loading = instance(expected_load_s=expected, measured_mb=tuple(measured))
    progress = load_progress(loading, elapsed)
    assert (progress is None) == (expected is None and not measured)
    assert progress is None or 0 <= progress <= 0.95


@pytest.mark.parametrize(("elapsed", "eta"), [(4.0, 6.0), (10.0, None), (60.0, None)])
def test_a_load_slower_than_past_loads_has_no_eta(elapsed, eta):
    """An ETA of 0 s for minutes would be wrong, for example for a hanging engine."""
    loading = instance(expected_load_s=10.0, started_at=1000.0)
    assert model_info(loading, "", (0,), 0, None, 1000.0 + elapsed).eta_s == eta


def test_progress_is_based_on_past_loads_before_memory():
    """The duration of the last load takes precedence over allocated memory."""
    assert load_progress(instance(expected_load_s=10.0, measured_mb=(90,)), 5.0) == 0.5
    assert load_progress(instance(measured_mb=(25,)), 5.0) == 0.25


@given(st.integers(1, 60000), st.integers(0, 30), st.data())
def test_ports_come_from_the_range_and_are_free(first, size, data):
    """A chosen port is in the range, unassigned and free on the host; a full range is an error."""
    last = first + size
    ports = list(range(first, last + 1))
    taken = set(data.draw(st.lists(st.sampled_from(ports))))
    busy = set(data.draw(st.lists(st.sampled_from(ports))))
    try:
        port = choose_port(first, last, taken=taken, is_free=lambda p: p not in busy, seed="i")
    except Unavailable:
        assert taken | busy == set(ports)
    else:
        assert port in ports
        assert port not in taken | busy


@pytest.mark.parametrize(
    ("status", "lines", "kind"),
    [
        (1, ["cudaMalloc failed: out of memory"], ExitKind.OUT_OF_MEMORY),
        (1, ["CUDA_ERROR_OUT_OF_MEMORY"], ExitKind.OUT_OF_MEMORY),
        (-6, ["terminate called after throwing 'std::bad_alloc'"], ExitKind.OUT_OF_MEMORY),
        (1, ["error: invalid argument: --nope"], ExitKind.BAD_ARGUMENTS),
        (2, ["error: unexpected argument '--nope' found"], ExitKind.BAD_ARGUMENTS),
        (1, ["[Errno 98] Address already in use"], ExitKind.PORT_TAKEN),
        (
            -6,
            ["CUDA error: no kernel image is available for execution on the device"],
            ExitKind.WRONG_BUILD,
        ),
        (1, ["CUDA driver version is insufficient for CUDA runtime version"], ExitKind.WRONG_BUILD),
        (1, ["gguf_init: failed to read magic", "failed to load model"], ExitKind.BAD_WEIGHTS),
        (1, ["gguf_init: invalid magic characters: '<htm', expected 'GGUF'"], ExitKind.BAD_WEIGHTS),
        (1, ["tensor 'x' data is not ..., model is corrupted or incomplete"], ExitKind.BAD_WEIGHTS),
        (1, ["SafetensorError: Error while deserializing header: ..."], ExitKind.BAD_WEIGHTS),
        (1, ["error loading model: unknown model architecture: 'x'"], ExitKind.UNKNOWN_MODEL),
        (1, ["Model architectures ['X'] are not supported for now."], ExitKind.UNKNOWN_MODEL),
        (-9, [], ExitKind.KILLED),
        (-15, ["bye"], ExitKind.KILLED),
        (
            -9,
            ["SIGQUIT received. It usually means one child failed.", "kill_process_tree called"],
            ExitKind.CRASH,
        ),
        (-11, [], ExitKind.CRASH),
        (-6, ["GGML_ASSERT(x) failed"], ExitKind.CRASH),
        (1, ["exiting due to model loading error"], ExitKind.CRASH),
        (
            1,
            ["ValueError: No available memory for the cache blocks. Try increasing"],
            ExitKind.OUT_OF_MEMORY,
        ),
        (None, ["whatever"], ExitKind.CRASH),
        (0, ["CUDA out of memory, once"], ExitKind.ENDED),
    ],
)
def test_exit_reasons_are_classified(status, lines, kind):
    """The exit status and the last output decide the kind of exit."""
    reason = classify(status, lines)
    assert reason.kind is kind
    for line in lines:
        assert line in reason.message


def test_an_oom_kill_is_distinguished_from_another_sigkill():
    """The exit status is the same; the kernel's OOM kill counter makes the difference."""
    assert classify(-9, [], oom_kills=1).kind is ExitKind.OUT_OF_MEMORY
    assert classify(None, [], oom_kills=1).kind is ExitKind.OUT_OF_MEMORY
    assert classify(-11, [], oom_kills=1).kind is ExitKind.CRASH
    assert classify(-9, [], oom_kills=0).kind is ExitKind.KILLED


VLLM_OUTPUT = (
    """
(EngineCore pid=9) ERROR 11-26 10:16:37 [core.py:1510] EngineCore failed to start.
(EngineCore pid=9) ERROR 11-26 10:16:37 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=9) ERROR 11-26 10:16:37 [core.py:1510]   File "/opt/vllm/core.py", line 315, in _initialize_kv_caches
(EngineCore pid=9) ERROR 11-26 10:16:37 [core.py:1510]     memory = self.executor.determine_available_memory()
(EngineCore pid=9) ERROR 11-26 10:16:37 [core.py:1510]              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
(EngineCore pid=9) ERROR 11-26 10:16:37 [core.py:1510] torch.OutOfMemoryError: CUDA out of memory.
Process EngineCore:
Traceback (most recent call last):
  File "/opt/vllm/core.py", line 1, in run
    raise error
torch.OutOfMemoryError: CUDA out of memory.
Traceback (most recent call last):
  File "/opt/vllm/bin/vllm", line 10, in <module>
    sys.exit(main())
             ^^^^^^
  File "uvloop/loop.pyx", line 1515, in uvloop.loop.Loop.run_until_complete
"""
    + '  File "/opt/vllm/serve.py", line 156, in cmd\n    run()\n' * 40
    + """
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
)


def test_python_stack_traces_do_not_hide_the_cause():
    """VLLM prints an error with its stack in each process that it passes through; the cause is reported once."""
    reason = classify(1, VLLM_OUTPUT.splitlines())
    assert reason.kind is ExitKind.OUT_OF_MEMORY
    assert reason.message.splitlines()[1:] == [
        "(EngineCore pid=9) ERROR 11-26 10:16:37 [core.py:1510] EngineCore failed to start.",
        "(EngineCore pid=9) ERROR 11-26 10:16:37 [core.py:1510] torch.OutOfMemoryError: CUDA out of memory.",
        "Process EngineCore:",
        "torch.OutOfMemoryError: CUDA out of memory.",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    ]


@pytest.mark.parametrize(
    "frame",
    [
        "/opt/libllama.so.0(_ZN13llama_context6decodeERK15llama_batch_ext+0x706)[0x7fa1c9005f70]",
        "#7  0x00007f72f69fe6ec in llama_context::decode () from /opt/libllama.so.0",
        "    frame #3: 0x00007f72f69fe6ec libllama.so`llama_context::decode + 12",
    ],
)
def test_a_stack_trace_does_not_hide_the_error_before_it(frame: str):
    """llama-server prints a CUDA error before dozens of lines of stack trace."""
    reason = classify(-6, ["CUDA error: out of memory", "  current device: 0", *[frame] * 30])
    assert reason.kind is ExitKind.OUT_OF_MEMORY
    assert reason.message.endswith("CUDA error: out of memory\n  current device: 0")
