from __future__ import annotations

import string
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_cli.render.formats import toml_key, toml_value
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import GatewayConfig
from cortex_common.config.loader import key_lines, line_of, load
from cortex_common.config.neuron import NeuronConfig
from cortex_common.errors import ConfigError

CORTEX_TOML = """\
[gateway]
listen = "0.0.0.0:8000"
metrics_listen = "0.0.0.0:9100"
[eviction]
strategy = "lru"
defrag_after_cycles = 50
[[neurons]]
name = "beast"
endpoint = "http://beast.internal:9090"
"""
MODELS_TOML = """\
[[models]]
id = "Qwen/Qwen3-Coder-30B-A3B-Instruct"
harness = "mistralrs"
quant = "Q4_K_M"
vram_mb = 19000
min_devices = 2
min_device_vram_mb = 10000
pinned_on = ["beast"]   # never evicted from these neurons
"""


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a file and returns its path."""

    def write(text: str, name: str = "cortex.toml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_original_gateway_file_loads(write_config):
    """The cortex.toml of the requirements loads unchanged, with the same meaning."""
    config = load(GatewayConfig, write_config(CORTEX_TOML), {}).value

    assert config.gateway.listen == "0.0.0.0:8000"
    assert config.gateway.metrics_listen == "0.0.0.0:9100"
    assert (config.eviction.strategy, config.eviction.defrag_after_cycles) == ("lru", 50)
    assert [(n.name, n.endpoint) for n in config.neurons] == [
        ("beast", "http://beast.internal:9090")
    ]


def test_original_catalogue_loads(write_config):
    """The models.toml of the requirements loads unchanged, with the same meaning."""
    (model,) = load(Catalogue, write_config(MODELS_TOML), {}).value.models

    assert model.id == "Qwen/Qwen3-Coder-30B-A3B-Instruct"
    assert (model.harness, model.quant, model.vram_mb) == ("mistralrs", "Q4_K_M", 19000)
    assert (model.min_devices, model.min_device_vram_mb) == (2, 10000)
    assert model.pinned_on == ("beast",)


def test_original_harness_entry_loads(write_config):
    """The [[harnesses]] entry of the requirements loads unchanged."""
    text = '[[harnesses]]\nname="llamacpp"\nbinary="/usr/local/bin/llama-server"\nport_range=[8100, 8199]\n'
    (harness,) = load(NeuronConfig, write_config(text, "neuron.toml"), {}).value.harnesses

    assert (harness.name, harness.port_range) == ("llamacpp", (8100, 8199))
    assert harness.binary == Path("/usr/local/bin/llama-server")


def test_defaults_apply_without_a_file():
    """Without a file and variables, all values are defaults, and none has an origin."""
    loaded = load(GatewayConfig, None, {})

    assert loaded.value == GatewayConfig()
    assert loaded.origins == {}


def test_variable_takes_precedence_over_file(write_config):
    """CORTEX_GATEWAY__LISTEN replaces the value of the file and is recorded as its origin."""
    path = write_config(CORTEX_TOML)
    loaded = load(GatewayConfig, path, {"CORTEX_GATEWAY__LISTEN": "127.0.0.1:7000"})

    assert loaded.value.gateway.listen == "127.0.0.1:7000"
    assert loaded.origins["gateway.listen"] == "$CORTEX_GATEWAY__LISTEN"
    assert loaded.origins["gateway.metrics_listen"] == f"{path}:3"


def test_variables_change_and_append_list_entries(write_config):
    """CORTEX_NEURONS__0__NAME changes the first neuron, and the next index appends one."""
    environ = {
        "CORTEX_NEURONS__0__NAME": "monster",
        "CORTEX_NEURONS__1__NAME": "mule",
        "CORTEX_NEURONS__1__ENDPOINT": "http://mule:9090",
    }
    neurons = load(GatewayConfig, write_config(CORTEX_TOML), environ).value.neurons

    assert [n.name for n in neurons] == ["monster", "mule"]


def test_gap_in_list_entries_is_an_error():
    """An index beyond the next one is an error that names the variable."""
    with pytest.raises(ConfigError, match=r"\$CORTEX_NEURONS__3__NAME: no entry 3"):
        load(GatewayConfig, None, {"CORTEX_NEURONS__3__NAME": "x"})


def test_variables_of_other_service_are_ignored():
    """A host that runs both daemons can set the variables of both in one environment."""
    environ = {"CORTEX_NEURON__LISTEN": "127.0.0.1:1", "CORTEX_API_KEY": "not a setting"}

    assert load(GatewayConfig, None, environ, siblings=(NeuronConfig,)).value == GatewayConfig()


def test_variable_of_no_service_is_an_error():
    """A misspelled section in a variable is an error with a suggestion."""
    with pytest.raises(ConfigError) as caught:
        load(GatewayConfig, None, {"CORTEX_GATEWY__LISTEN": "127.0.0.1:1"})

    assert "$CORTEX_GATEWY__LISTEN" in caught.value.message
    assert caught.value.hints == ("did you mean 'gateway'?",)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('[gateway]\nlisen = "x:1"\n', "{path}:2: unknown key gateway.lisen", "did you mean 'listen'?"),
        ("[gatway]\n", "{path}:1: unknown key gatway", "did you mean 'gateway'?"),
        ("[gateway]\nmax_body_mb = 'big'\n", "{path}:2: gateway.max_body_mb: ", None),
        ("[gateway]\n\nlisten = 8000\n", "{path}:3: gateway.listen: ", None),
        ("[gateway]\nlisten = 'nowhere'\n", "'nowhere' is not an address like", None),
        ("[[neurons]]\nname = 'a'\n", "{path}:1: neurons.0.endpoint is required", None),
        (
            "[[neurons]]\nname='a'\nendpoint='http://a'\n[[neurons]]\nname='b'\nendpont='http://b'\n",
            "{path}:6: unknown key neurons.1.endpont",
            "did you mean 'endpoint'?",
        ),
        (
            "[[neurons]]\nname='a'\nendpoint='http://a'\n[[neurons]]\nname='a'\nendpoint='http://b'\n",
            "have the name 'a'",
            None,
        ),
        (
            "[[neurons]]\nname='a'\nendpoint='http://a'\n[[neurons]]\nname='b'\nendpoint='http://a/'\n",
            "two neurons have the endpoint 'http://a'",
            None,
        ),
        ("[[neurons]]\nname='a'\nendpoint='beast:9090'\n", "'beast:9090' is not a URL like", None),
        ("[eviction]\nstrategy = 'mru'\n", "{path}:2: eviction.strategy: ", None),
        ("[gateway\n", "{path}: not valid TOML: ", None),
        (
            "[neurons]\nname = 'a'\n",
            "{path}:1: neurons: Input should be a list",
            "use [[neurons]] for a list of tables",
        ),
        ("[[keys]]\nmodels = 'a'\n", "{path}:2: keys.0.models: Input should be a list", None),
    ],
)  # fmt: skip
def test_mistakes_are_located(write_config, text: str, message: str, hint: str | None):
    """A mistake is an error with file, line and key, and with a suggestion if a similar name exists."""
    path = write_config(text)

    with pytest.raises(ConfigError) as caught:
        load(GatewayConfig, path, {})

    assert message.format(path=path) in caught.value.message
    if hint:
        assert hint in caught.value.hints


def test_all_mistakes_are_reported_together(write_config):
    """Two mistakes in a file yield two lines in one error."""
    path = write_config("[gateway]\nlisen = 1\nmax_body_mb = 0\n")

    with pytest.raises(ConfigError) as caught:
        load(GatewayConfig, path, {})

    assert len(caught.value.message.splitlines()) == 2


def test_invalid_variable_is_named_instead_of_the_file(write_config):
    """If an invalid value came from the environment, the message names the variable."""
    with pytest.raises(ConfigError, match=r"^\$CORTEX_GATEWAY__MAX_BODY_MB: gateway.max_body_mb"):
        load(GatewayConfig, write_config(CORTEX_TOML), {"CORTEX_GATEWAY__MAX_BODY_MB": "lots"})


def test_missing_file_is_an_error(tmp_path: Path):
    """A given file that does not exist is an error; defaults are not used silently."""
    with pytest.raises(ConfigError, match="No such file"):
        load(GatewayConfig, tmp_path / "none.toml", {})


def test_models_must_have_unique_names(write_config):
    """An alias equal to the id of another model is rejected, with both ids."""
    text = "[[models]]\nid='a'\nharness='x'\n[[models]]\nid='b'\nharness='x'\naliases=['a']\n"

    with pytest.raises(ConfigError, match="'a' is the name of two models: 'a' and 'b'"):
        load(Catalogue, write_config(text, "models.toml"), {})


KEYS = st.text(string.ascii_lowercase + "_", min_size=1, max_size=8)
SCALARS = st.integers(-(2**40), 2**40) | st.booleans() | st.text(max_size=20)


@given(st.dictionaries(KEYS, st.dictionaries(KEYS, SCALARS, max_size=4), max_size=4))
def test_each_key_is_located_on_its_line(tables: dict[str, dict[str, object]]):
    """The line reported for a key is the line that contains it."""
    lines: list[str] = []
    expected: dict[tuple[str, ...], int] = {}
    for table, values in tables.items():
        lines.append(f"[{table}]")
        expected[table,] = len(lines)
        for key, value in values.items():
            lines.append(f"{toml_key(key)} = {toml_value(value)}")
            expected[table, key] = len(lines)
    text = "\n".join(lines)
    # Line separators inside strings are written raw by TOML; splitlines would count them.
    if len(text.splitlines()) != len(lines):
        return
    found = key_lines(text)

    assert {path: line_of(found, path) for path in expected} == expected


@given(st.lists(st.sampled_from(["listen", "models"]), min_size=1, max_size=2, unique=True))
def test_environment_values_can_be_quoted_or_bare(names: list[str]):
    """A string in the environment means the same with TOML quotes and without."""
    values = {"listen": "127.0.0.1:81", "models": "m.toml"}
    bare = {f"CORTEX_GATEWAY__{n.upper()}": values[n] for n in names}
    quoted = {k: f'"{v}"' for k, v in bare.items()}

    assert load(GatewayConfig, None, bare).value == load(GatewayConfig, None, quoted).value


@given(
    st.recursive(
        SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3)
    )
)
def test_toml_values_round_trip(value: object):
    """A value written as TOML is parsed as the same value."""
    assert tomllib.loads(f"v = {toml_value(value)}")["v"] == value
