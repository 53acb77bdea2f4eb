"""Writes all generated pages and the JSON schemas of the configuration files; run in docs/ by `make reference`."""

from __future__ import annotations

from cortex_cli.config_files import ConfigFile, json_schema
from generator.pages import PAGES, REFERENCE

for name, page in PAGES.items():
    (REFERENCE / name).write_text(page(), encoding="utf-8")
for file in ConfigFile:
    schema = REFERENCE.parents[1] / "config" / f"{file.value}.schema.json"
    schema.write_text(json_schema(file), encoding="utf-8")
