"""Directives: whichever order nodes and gateways hear of them in, all come to the same result."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cortex_common.schema.directives import (
    RETENTION_S,
    Directive,
    DirectiveKind,
    DirectiveSet,
)

NOW = 1_700_000_000.0

DIRECTIVES = st.builds(
    Directive,
    kind=st.sampled_from(DirectiveKind),
    model=st.sampled_from(["", "a", "b"]),
    fleet=st.booleans(),
    active=st.booleans(),
    until=st.none() | st.sampled_from([NOW - 5, NOW + 5]),
    set_at=st.sampled_from([0.0, 1.0, NOW, NOW + 0.001]),
)


@given(st.lists(DIRECTIVES), st.data())
def test_the_order_of_arrival_does_not_matter(directives: list[Directive], data: st.DataObject):
    """Two gateways that hear of the same directives in another order agree, also about equal times."""
    other = data.draw(st.permutations(directives))
    one, two = DirectiveSet(directives), DirectiveSet(other)
    assert not one.newer_than(two)
    assert not two.newer_than(one)


def test_a_later_change_replaces_an_earlier_one_despite_a_clock_that_is_behind():
    """A gateway whose clock is behind can still change what another one set."""
    known = DirectiveSet([Directive(kind=DirectiveKind.CORDON, set_at=NOW + 60)])
    lifted = known.with_time(Directive(kind=DirectiveKind.CORDON, active=False), NOW)
    assert known.merge([lifted])
    assert not known.all()[0].active


def test_a_removal_is_kept_for_nodes_that_are_away():
    """The end of a directive is remembered for a month, so that a node that comes back does not revive it."""
    removed = Directive(kind=DirectiveKind.PIN, model="a", active=False, set_at=NOW)
    known = DirectiveSet([removed])
    assert not known.prune(NOW + RETENTION_S - 1)
    assert not known.merge([Directive(kind=DirectiveKind.PIN, model="a", set_at=NOW - 1)])
    assert known.prune(NOW + RETENTION_S + 1)


def test_a_pin_ends_at_its_time():
    """A pin with an end is in force until then."""
    pin = Directive(kind=DirectiveKind.PIN, model="a", until=NOW)
    assert pin.in_force(NOW - 1)
    assert not pin.in_force(NOW)
