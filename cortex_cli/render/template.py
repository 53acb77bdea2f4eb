"""Configuration file templates: every setting with its description, at its default, commented out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cortex_cli.config_files import NAMES, SCHEMAS, ConfigFile
from cortex_cli.render.formats import toml_value


def template(file: ConfigFile) -> str:
    """Return the text of a file. It is valid as is and sets nothing."""
    lines = [f"# {NAMES[file]}. Every setting with its default; remove the # to change one."]
    for name, field in SCHEMAS[file].model_fields.items():
        tables = list(_models_in(field.annotation))
        if tables:
            listed = "[[" if _is_list(field) else "["
            lines += ["", *_table(tables[0], f"{listed}{name}{']' * len(listed)}", listed == "[[")]
    return "\n".join(lines) + "\n"


def _table(model: type[BaseModel], header: str, commented: bool) -> Iterator[str]:
    yield f"# {_first_line(model.__doc__ or '')}"
    yield f"# {header}" if commented else header
    for name, field in model.model_fields.items():
        yield ""
        yield from (f"# {line}" for line in (field.description or "").splitlines())
        yield f"# {name} = {_example(field)}"


def _first_line(doc: str) -> str:
    return doc.strip().splitlines()[0] if doc.strip() else ""


def _example(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is PydanticUndefined or default is None:
        return '""' if default is PydanticUndefined else "..."
    return toml_value(_jsonable(default))


def _jsonable(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple):
        return [_jsonable(v) for v in value]
    return value if isinstance(value, str | int | float | bool | dict) else str(value)


def _is_list(field: FieldInfo) -> bool:
    return bool(get_args(field.annotation))


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
