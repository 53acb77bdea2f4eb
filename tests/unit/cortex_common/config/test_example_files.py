from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cortex_cli.config_files import (
    NAMES,
    SCHEMAS,
    ConfigFile,
    detect_kind,
    find_warnings,
    json_schema,
    read_catalogue,
    read_gateway,
)
from cortex_cli.render.template import template
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import GatewayConfig
from cortex_common.config.loader import load
from cortex_common.config.provenance import HIDDEN, list_settings
from cortex_common.config.secrets import is_secret
from cortex_common.errors import ConfigError
from cortex_common.schema.bounds import MAX_DURATION_S
from cortex_common.units import parse_duration

EXAMPLES = Path(__file__).parents[4] / "config"


@pytest.mark.parametrize("file", list(ConfigFile))
def test_examples_load(file: ConfigFile):
    """Each example file in config/ is valid."""
    assert load(SCHEMAS[file], EXAMPLES / NAMES[file], {}).path is not None


@pytest.mark.parametrize("file", list(ConfigFile))
def test_schemas_are_up_to_date(file: ConfigFile):
    """config/*.schema.json equals the output of `cortex config schema`; regenerate it if this fails."""
    stored = (EXAMPLES / f"{file.value}.schema.json").read_text(encoding="utf-8")

    assert stored == json_schema(file)


@pytest.mark.parametrize("text", ["90", "1.5s", "10m", "1h30m", "2 H", "", "m", "5 parsecs"])
def test_duration_schema_matches_parser(text: str):
    """The schema of a duration accepts numbers, and exactly the strings that `parse_duration` accepts."""
    field = GatewayConfig.model_json_schema()["$defs"]["EvictionSection"]["properties"]["idle_ttl"]
    number, string = field["anyOf"]
    try:
        parse_duration(text)
    except ValueError:
        is_valid = False
    else:
        is_valid = True

    assert number == {"type": "number", "minimum": 0, "maximum": MAX_DURATION_S}
    assert bool(re.search(string["pattern"], text)) == is_valid


@pytest.mark.parametrize("file", list(ConfigFile))
def test_every_setting_has_a_docstring(file: ConfigFile):
    """Every setting has a docstring, which is its text in the settings reference."""

    def undocumented(node: object) -> list[str]:
        if isinstance(node, list):
            return [name for inner in node for name in undocumented(inner)]
        if not isinstance(node, dict):
            return []
        here = [
            name
            for name, field in node.get("properties", {}).items()
            if "$ref" not in json.dumps(field) and "description" not in field
        ]
        return here + [name for inner in node.values() for name in undocumented(inner)]

    assert undocumented(json.loads(json_schema(file))) == []


@pytest.mark.parametrize("file", list(ConfigFile))
def test_templates_are_valid_and_set_only_defaults(file: ConfigFile, tmp_path: Path):
    """The output of `cortex config init` loads unchanged and has only default values."""
    path = tmp_path / NAMES[file]
    path.write_text(template(file))

    assert load(SCHEMAS[file], path, {}).value == SCHEMAS[file]()


@pytest.mark.parametrize("file", list(ConfigFile))
def test_templates_contain_every_setting(file: ConfigFile):
    """A new setting appears in the template automatically."""
    schema, text = json.loads(json_schema(file)), template(file)
    tables = re.findall(r"#/\$defs/(\w+)", json.dumps(schema["properties"]))

    assert tables
    for table in tables:
        assert [n for n in schema["$defs"][table]["properties"] if f"# {n} = " not in text] == []


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("[gateway]\n[eviction]\n", ConfigFile.GATEWAY),
        ("[[models]]\n", ConfigFile.MODELS),
        ("[neuron]\n[cpu]\n", ConfigFile.NEURON),
    ],
)
def test_file_kind_is_detected_from_its_tables(tmp_path: Path, text: str, file: ConfigFile):
    """A file with any name is checked against the schema that has its tables."""
    path = tmp_path / "some.toml"
    path.write_text(text)

    assert detect_kind(path) is file


def test_file_with_unknown_tables_is_rejected(tmp_path: Path):
    """If no schema has the tables of a file, its kind is not guessed."""
    path = tmp_path / "some.toml"
    path.write_text("[weather]\n")

    with pytest.raises(ConfigError) as caught:
        detect_kind(path)

    assert "--kind" in caught.value.hints[0]


def test_catalogue_path_is_relative_to_gateway_file(tmp_path: Path):
    """The `models` path of the gateway is relative to the directory of its file."""
    (tmp_path / "cortex.toml").write_text('[gateway]\nmodels = "my-models.toml"\n')
    (tmp_path / "my-models.toml").write_text("[[models]]\nid = 'a'\nharness = 'x'\n")
    gateway = read_gateway(tmp_path / "cortex.toml", {})

    assert [m.id for m in read_catalogue(None, gateway, {}).value.models] == ["a"]


def test_configured_catalogue_must_exist(tmp_path: Path):
    """A `models` setting for a missing file is an error; without the setting the file is optional."""
    (tmp_path / "cortex.toml").write_text('[gateway]\nmodels = "none.toml"\n')
    with pytest.raises(ConfigError, match="No such file"):
        read_catalogue(None, read_gateway(tmp_path / "cortex.toml", {}), {})

    (tmp_path / "cortex.toml").write_text("[gateway]\n")
    gateway = read_gateway(tmp_path / "cortex.toml", {})
    assert read_catalogue(None, gateway, {}).value == Catalogue()


def test_settings_have_value_and_origin(tmp_path: Path):
    """Each setting is listed with file and line, variable, or "default"."""
    path = tmp_path / "cortex.toml"
    path.write_text(
        "[gateway]\nmax_body_mb = 5\n[[neurons]]\nname = 'a'\nendpoint = 'http://a:1'\n"
    )
    loaded = read_gateway(path, {"CORTEX_GATEWAY__LISTEN": "127.0.0.1:1"})
    found = {s.key: (s.value, s.origin) for s in list_settings(loaded)}

    assert found["gateway.max_body_mb"] == (5, f"{path}:2")
    assert found["gateway.listen"] == ("127.0.0.1:1", "$CORTEX_GATEWAY__LISTEN")
    assert found["gateway.models"] == ("models.toml", "default")
    assert found["neurons.0.name"] == ("a", f"{path}:4")


def test_secrets_are_hidden(tmp_path: Path):
    """The environment of a model config is listed without its values."""
    path = tmp_path / "models.toml"
    path.write_text(
        '[[models]]\nid = "a"\nharness = "x"\nenv = { HF_TOKEN = "hf_abc", HOME = "/x" }\n'
    )
    found = {s.key: s.value for s in list_settings(load(Catalogue, path, {}))}

    assert found["models.0.env.HF_TOKEN"] == HIDDEN
    assert found["models.0.env.HOME"] == HIDDEN


def test_misplaced_secret_is_not_in_the_error(tmp_path: Path):
    """The error names the key, but does not contain the value."""
    path = tmp_path / "cortex.toml"
    path.write_text('[[keys]]\nname = "a"\nhash = "ctx_s3cret"\n')

    with pytest.raises(ConfigError, match=r"keys\.0\.hash") as caught:
        read_gateway(path, {})
    assert "s3cret" not in caught.value.message


def test_paths_of_secrets_are_shown():
    """The path of a secret is not a secret, nor is a token count; an upstream's key is."""
    secrets = ("a.token", "upstreams.0.key", "API_KEY", "models.0.env.WANDB_KEY")
    others = ("a.token_file", "tokens_per_minute", "tls.key", "neurons.0.certificate_key")

    assert all(map(is_secret, secrets))
    assert not any(map(is_secret, others))


def test_pin_on_unknown_node_is_a_warning(tmp_path: Path):
    """A pin on a node that is not in [[neurons]] is probably a typo."""
    gateway = load(SCHEMAS[ConfigFile.GATEWAY], EXAMPLES / "cortex.toml", {}).value
    catalogue = Catalogue.model_validate(
        {"models": [{"id": "a", "harness": "x", "pinned_on": ["best"]}]}
    )

    assert find_warnings(gateway, catalogue) == [
        "model a: pinned_on names 'best', which is not in [[neurons]]"
    ]
