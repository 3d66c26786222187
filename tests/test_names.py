"""Which names are usable, told quickly for most and by the rule for the rest."""

from __future__ import annotations

import enum

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crossband.errors import EncodeError, InvalidName
from crossband.names import NAME_LENGTH, RESERVED, check_event, check_name

# Of every kind that a rule speaks of, or might be thought to: C0, DEL, C1, unassigned, private,
# separators, half a surrogate pair.
characters = st.characters() | st.sampled_from("\0\x1f\x20\x7f\x80\x9f\xa0\u2028\u0378\ue000\ud800")


class Word(enum.StrEnum):
    GOOD = "good"
    BAD = "b\x7fd"


@settings(max_examples=200, deadline=None, database=None)
@given(st.text(characters, max_size=8) | st.integers(0, 300).map("é".__mul__))
@example("a" * NAME_LENGTH)
@example("a" * (NAME_LENGTH + 1))
@example(Word.GOOD)
@example(Word.BAD)
def test_usable_names_are_those_of_the_rule(name: str) -> None:
    usable = 0 < len(name) <= NAME_LENGTH and not any(
        ord(character) < 0x20 or character == "\x7f" or "\ud800" <= character <= "\udfff"
        for character in name
    )
    if usable:
        checked = check_name(name, "a name")
        assert (type(checked), checked) == (str, name)
        assert check_event(name) == name
    else:
        with pytest.raises(InvalidName):
            check_name(name, "a name")


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_name_is_no_event_to_emit(name: str) -> None:
    assert check_name(name, "a name") == name
    with pytest.raises(EncodeError, match="reserved"):
        check_event(name)
