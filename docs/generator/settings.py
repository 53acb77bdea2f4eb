"""The settings reference: every setting of a file with its type, default, environment variable and docstring."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cortex_cli.config_files import NAMES, SCHEMAS, ConfigFile
from cortex_cli.render.formats import toml_value
from cortex_common.config.catalogue import Duration
from cortex_common.config.loader import ENV_PREFIX
from generator.text import page, sentence

_DURATION = 'duration: seconds, or a string such as `"10m"`'
_TITLES = {
    ConfigFile.GATEWAY: "Gateway settings",
    ConfigFile.MODELS: "Model settings",
    ConfigFile.NEURON: "Neuron settings",
}
_ABOUT = """`{name}` is read from `/etc/cortex/{name}` unless {option} names another file. An environment variable
overrides the file. Its value is written as in TOML; quotes around a string can be omitted. `cortex config init {file}`
prints a file with all settings and their defaults, `cortex config check` validates a file, and
`cortex config show {file} --origin` shows where each value comes from."""
_OPTIONS = {
    ConfigFile.GATEWAY: "`cortex serve gateway --config`",
    ConfigFile.MODELS: "`models` in [`[gateway]`](gateway-settings.md) or `cortex serve gateway --models`",
    ConfigFile.NEURON: "`cortex serve neuron --config`",
}


def settings_page(file: ConfigFile) -> str:
    """Return the text of a docs/reference/*-settings.md."""
    about = _ABOUT.format(name=NAMES[file], file=file.value, option=_OPTIONS[file])
    parts: list[str] = []
    for name, field in SCHEMAS[file].model_fields.items():
        parts += _table(_model(field), (name, "0") if _is_list(field) else (name,))
    return page(f"{_TITLES[file]}: {NAMES[file]}", " ".join(about.split("\n")), *parts)


def _table(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    """Yield the section of a table with all of its settings, then those of its nested tables.

    Args:
        model: schema of the table.
        path: path of the table in environment variables, with the index 0 for a list of tables.
    """
    dotted = ".".join(part for part in path if part != "0")
    yield f"## [[{dotted}]]" if path[-1] == "0" else f"## [{dotted}]"
    first, _, more = (model.__doc__ or "").strip().partition("\n")
    yield sentence(first.partition("]: ")[2] or first)
    if more.strip():
        yield sentence(more)
    schema = model.model_json_schema()
    inner: list[tuple[str, FieldInfo]] = []
    for name, field in model.model_fields.items():
        if _has_model(field):
            inner.append((name, field))
            continue
        yield f"### {dotted}.{name}"
        kind = _DURATION if _is_duration(field) else _type(schema["properties"][name], schema)
        variable = ENV_PREFIX + "__".join((*path, name)).upper()
        yield f"{sentence(kind)}; {_default(field)}; `{variable}`"
        yield sentence(field.description or "")
    for name, field in inner:
        yield from _table(_model(field), (*path, name))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = json.loads(json.dumps(field.get_default(call_default_factory=True), default=str))
    return "optional" if value is None else f"default `{toml_value(value)}`"


def _is_duration(field: FieldInfo) -> bool:
    parser = get_args(Duration)[1]
    nested = [m for a in get_args(field.annotation) for m in get_args(a)]
    return parser in field.metadata or parser in nested


_WORDS = {
    "string": "string",
    "integer": "integer",
    "number": "number",
    "boolean": "boolean",
    "object": "table",
}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


def _type(schema: dict[str, Any], root: dict[str, Any]) -> str:
    """Return the type of a JSON schema in words."""
    if "$ref" in schema:
        return _type(root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], root)
    if "anyOf" in schema:
        return _type(next(s for s in schema["anyOf"] if s.get("type") != "null"), root)
    if "enum" in schema:
        return "one of " + ", ".join(f"`{json.dumps(v)}`" for v in schema["enum"])
    if schema.get("type") == "array":
        fixed = schema.get("prefixItems", ())
        kind = _type(fixed[0] if fixed else schema["items"], root)
        return (
            f"list of {len(fixed) or ''} {kind}s"
            if kind in _WORDS.values()
            else f"list, each {kind}"
        )
    bounds = [f"{word} {schema[k]:g}" for k, word in _BOUNDS.items() if k in schema]
    return ", ".join([_WORDS[schema["type"]], *bounds])


def _is_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is tuple


def _has_model(field: FieldInfo) -> bool:
    return next(_models(field.annotation), None) is not None


def _model(field: FieldInfo) -> type[BaseModel]:
    return next(_models(field.annotation))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
