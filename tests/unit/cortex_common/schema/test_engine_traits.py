"""The traits of engines that run outside the fleet."""

from __future__ import annotations

from typing import get_args

from cortex_common.config.gateway import UpstreamEntry
from cortex_common.schema.engine_traits import UPSTREAM_TRAITS, EngineTraits


def test_every_engine_of_an_upstream_has_traits() -> None:
    """The values that `engine` of [[upstreams]] accepts are "auto" and the ones that have traits."""
    engines = set(get_args(UpstreamEntry.model_fields["engine"].annotation))
    assert engines == {"auto", *UPSTREAM_TRAITS}


def test_traits_survive_json_and_ignore_fields_of_newer_neurons() -> None:
    """A newer neuron can report a trait that this gateway does not know."""
    for traits in UPSTREAM_TRAITS.values():
        assert EngineTraits.model_validate_json(traits.model_dump_json()) == traits
    assert EngineTraits.model_validate({"telepathy": True}) == EngineTraits()
