from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cortex_cli.config_files import (
    NAMES,
    SCHEMAS,
    File,
    json_schema,
    kind_of,
    read_catalogue,
    read_gateway,
    warnings,
)
from cortex_cli.render.template import template
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import GatewayConfig
from cortex_common.config.loader import load
from cortex_common.config.provenance import HIDDEN, settings
from cortex_common.config.secrets import is_secret
from cortex_common.errors import ConfigError
from cortex_common.units import parse_duration

EXAMPLES = Path(__file__).parents[4] / "config"


@pytest.mark.parametrize("file", list(File))
def test_examples_load(file: File):
    """Each example file in config/ is valid."""
    assert load(SCHEMAS[file], EXAMPLES / NAMES[file], {}).path is not None


@pytest.mark.parametrize("file", list(File))
def test_schemas_are_up_to_date(file: File):
    """config/*.schema.json is what `cortex config schema` prints (write it anew when this fails)."""
    kept = (EXAMPLES / f"{file.value}.schema.json").read_text(encoding="utf-8")

    assert kept == json_schema(file)


@pytest.mark.parametrize("text", ["90", "1.5s", "10m", "1h30m", "2 H", "", "m", "5 parsecs"])
def test_editors_take_the_durations_that_the_gateway_takes(text: str):
    """The schema of a duration is a number or a text, and of texts just those that are read."""
    field = GatewayConfig.model_json_schema()["$defs"]["EvictionSection"]["properties"]["idle_ttl"]
    number, written = field["anyOf"]
    try:
        parse_duration(text)
    except ValueError:
        is_read = False
    else:
        is_read = True

    assert number == {"type": "number", "minimum": 0}
    assert bool(re.search(written["pattern"], text)) == is_read


@pytest.mark.parametrize("file", list(File))
def test_every_setting_is_explained(file: File):
    """Each setting of each file has a docstring, which is its reference text."""

    def unexplained(node: object) -> list[str]:
        if isinstance(node, list):
            return [name for inner in node for name in unexplained(inner)]
        if not isinstance(node, dict):
            return []
        here = [
            name
            for name, field in node.get("properties", {}).items()
            if "$ref" not in json.dumps(field) and "description" not in field
        ]
        return here + [name for inner in node.values() for name in unexplained(inner)]

    assert unexplained(json.loads(json_schema(file))) == []


@pytest.mark.parametrize("file", list(File))
def test_templates_are_valid_and_mean_the_defaults(file: File, tmp_path: Path):
    """`cortex config init` prints a file that loads as it stands and changes nothing."""
    path = tmp_path / NAMES[file]
    path.write_text(template(file))

    assert load(SCHEMAS[file], path, {}).value == SCHEMAS[file]()


@pytest.mark.parametrize("file", list(File))
def test_templates_name_every_setting(file: File):
    """A setting that is added appears in the template by itself."""
    schema, text = json.loads(json_schema(file)), template(file)
    tables = re.findall(r"#/\$defs/(\w+)", json.dumps(schema["properties"]))

    assert tables
    for table in tables:
        assert [n for n in schema["$defs"][table]["properties"] if f"# {n} = " not in text] == []


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("[gateway]\n[eviction]\n", File.GATEWAY),
        ("[[models]]\n", File.MODELS),
        ("[neuron]\n[cpu]\n", File.NEURON),
    ],
)
def test_a_file_is_known_by_its_tables(tmp_path: Path, text: str, file: File):
    """A file of any name is checked against the schema that knows its tables."""
    path = tmp_path / "some.toml"
    path.write_text(text)

    assert kind_of(path) is file


def test_a_file_of_nothing_known_is_refused(tmp_path: Path):
    """A file that no schema knows is not guessed at."""
    path = tmp_path / "some.toml"
    path.write_text("[weather]\n")

    with pytest.raises(ConfigError) as caught:
        kind_of(path)

    assert "--kind" in caught.value.hints[0]


def test_the_catalogue_lies_beside_the_settings(tmp_path: Path):
    """The gateway's `models` path starts at the directory of its own file."""
    (tmp_path / "cortex.toml").write_text('[gateway]\nmodels = "my-models.toml"\n')
    (tmp_path / "my-models.toml").write_text("[[models]]\nid = 'a'\nharness = 'x'\n")
    gateway = read_gateway(tmp_path / "cortex.toml", {})

    assert [m.id for m in read_catalogue(None, gateway, {}).value.models] == ["a"]


def test_a_catalogue_that_is_named_must_be_there(tmp_path: Path):
    """A `models` setting that points nowhere is an error; without the setting there may be no file."""
    (tmp_path / "cortex.toml").write_text('[gateway]\nmodels = "none.toml"\n')
    with pytest.raises(ConfigError, match="No such file"):
        read_catalogue(None, read_gateway(tmp_path / "cortex.toml", {}), {})

    (tmp_path / "cortex.toml").write_text("[gateway]\n")
    gateway = read_gateway(tmp_path / "cortex.toml", {})
    assert read_catalogue(None, gateway, {}).value == Catalogue()


def test_settings_tell_value_and_origin(tmp_path: Path):
    """Each setting is listed with file and line, variable, or "default"."""
    path = tmp_path / "cortex.toml"
    path.write_text(
        "[gateway]\nmax_body_mb = 5\n[[neurons]]\nname = 'a'\nendpoint = 'http://a:1'\n"
    )
    loaded = read_gateway(path, {"CORTEX_GATEWAY__LISTEN": "127.0.0.1:1"})
    found = {s.key: (s.value, s.origin) for s in settings(loaded)}

    assert found["gateway.max_body_mb"] == (5, f"{path}:2")
    assert found["gateway.listen"] == ("127.0.0.1:1", "$CORTEX_GATEWAY__LISTEN")
    assert found["gateway.models"] == ("models.toml", "default")
    assert found["neurons.0.name"] == ("a", f"{path}:4")


def test_secrets_are_not_shown(tmp_path: Path):
    """A token in a profile's environment is listed without its value."""
    path = tmp_path / "models.toml"
    path.write_text(
        '[[models]]\nid = "a"\nharness = "x"\nenv = { HF_TOKEN = "hf_abc", HOME = "/x" }\n'
    )
    found = {s.key: s.value for s in settings(load(Catalogue, path, {}))}

    assert found["models.0.env.HF_TOKEN"] == HIDDEN
    assert found["models.0.env.HOME"] == "/x"


def test_a_secret_in_the_wrong_place_is_not_repeated(tmp_path: Path):
    """The error names the key and keeps the value to itself."""
    path = tmp_path / "cortex.toml"
    path.write_text('[[keys]]\nname = "a"\nhash = "ctx_s3cret"\n')

    with pytest.raises(ConfigError, match=r"keys\.0\.hash") as caught:
        read_gateway(path, {})
    assert "s3cret" not in caught.value.message


def test_files_of_secrets_are_shown():
    """Where a secret lies is no secret, nor is a counted token; an upstream's key is one."""
    secret = ("a.token", "upstreams.0.key", "API_KEY", "models.0.env.WANDB_KEY")
    plain = ("a.token_file", "tokens_per_minute", "tls.key", "neurons.0.certificate_key")

    assert all(map(is_secret, secret))
    assert not any(map(is_secret, plain))


def test_what_is_hardly_meant_is_a_warning(tmp_path: Path):
    """A pin on a node that the gateway does not know is told."""
    gateway = load(SCHEMAS[File.GATEWAY], EXAMPLES / "cortex.toml", {}).value
    catalogue = Catalogue.model_validate(
        {"models": [{"id": "a", "harness": "x", "pinned_on": ["best"]}]}
    )

    assert warnings(gateway, catalogue) == [
        "model a: pinned_on names 'best', which is no neuron here"
    ]
