"""Which messages go when an outbox is full, and what is declared of them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from crossband import EncodeError, Hub
from crossband.policies import Tag, shed

# A message as (tag, number); "l" and a key: latest, "o": drop oldest, "": neither.
Item = tuple[str, int]


def tag(item: Item) -> Tag | None:
    name = item[0]
    return Tag(name, latest=name.startswith("l")) if name else None


def left(names: str, excess: int = 0) -> str:
    """Return the places of what is left of the named messages, of size 1 each."""
    items = [(name.strip("-"), place) for place, name in enumerate(names.split())]
    kept, freed = shed(items, tag, lambda _: 1, excess)
    assert freed == len(items) - len(kept)
    return "".join(str(place) for _, place in kept)


def test_latest_of_each_key_is_left_in_its_place() -> None:
    assert left("la lb la - lb la -") == "3456"


def test_oldest_go_only_as_far_as_needed() -> None:
    assert left("o o - o o") == "01234"
    assert left("o o - o o", excess=2) == "234"


def test_newest_of_each_event_stays() -> None:
    assert left("o1 - o2 o2", excess=9) == "013"
    assert left("la lb", excess=9) == "01"


def test_worthless_go_before_the_oldest() -> None:
    assert left("o la o la la", excess=2) == "024"


def test_what_has_no_policy_stays() -> None:
    assert left("- - -", excess=9) == "012"


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (
            ("e", "drop"),
            ValueError,
            "no policy 'drop' for 'e': expected 'disconnect', 'drop_oldest'",
        ),
        (("e", None), ValueError, "no policy None"),
        (("connect", "latest"), EncodeError, "'connect' is a reserved event name"),
        (("", "latest"), EncodeError, "an event name must have 1 to 256 characters"),
        (("taken", "latest"), ValueError, "'taken' has a policy already"),
        (("e", "drop_oldest", str), ValueError, "a key goes with the policy 'latest' only"),
        (("e", "latest", "user"), TypeError, "the key of 'e' must be a function, not str"),
    ],
)
def test_policy_that_makes_no_sense_is_refused(
    arguments: tuple[Any, ...], error: type[Exception], says: str
) -> None:
    hub = Hub()
    hub.policy("taken", "drop_oldest")
    event, policy, *key = arguments
    with pytest.raises(error, match=re.escape(says)):
        hub.policy(event, policy, key=key[0] if key else None)


def test_key_that_fails_or_does_not_fit_is_told_to_who_emits() -> None:
    hub = Hub()
    hub.policy("move", "latest", key=lambda data: data["user"])
    with pytest.raises(EncodeError, match=r"the key function of 'move' failed: KeyError\('user'\)"):
        hub.emit("move", {})
    with pytest.raises(EncodeError, match="must be a string or an integer, not list"):
        hub.emit("move", {"user": []})
