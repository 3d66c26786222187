"""Which unrecorded events the official client may take for its offset."""

from __future__ import annotations

from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from crossband.broker import Publication
from crossband.hub.places import TAIL_SIZE, Places
from crossband.protocol import payload
from tests.protocol.strategies import binary_values, text


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(binary_values | text, max_size=3))
def test_event_that_ends_in_a_string_is_known_by_its_text(args: list[Any]) -> None:
    data = payload.encode(args)
    assume(len(data.json) <= TAIL_SIZE)
    last = payload.decode(data)[-1:]
    ends_in_text = not last or isinstance(last[0], str)
    assert Places.has_one(Publication("/", "x", data)) is ends_in_text
