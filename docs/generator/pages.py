"""The generated pages and the functions that generate them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from cortex_cli.config_files import ConfigFile
from cortex_cli.docs.reference import commands_page, keys_page
from generator.api import gateway_page, neuron_page
from generator.compatibility import compatibility_page
from generator.errors import errors_page
from generator.metrics import metrics_page
from generator.settings import settings_page

REFERENCE = Path(__file__).parents[1] / "reference"

PAGES: Mapping[str, Callable[[], str]] = {
    "cli.md": commands_page,
    "keys.md": keys_page,
    "gateway-settings.md": partial(settings_page, ConfigFile.GATEWAY),
    "model-settings.md": partial(settings_page, ConfigFile.MODELS),
    "neuron-settings.md": partial(settings_page, ConfigFile.NEURON),
    "gateway-api.md": gateway_page,
    "neuron-api.md": neuron_page,
    "metrics.md": metrics_page,
    "errors.md": errors_page,
    "compatibility.md": compatibility_page,
}
"""Maps a file name in docs/reference to the function that returns its text."""
