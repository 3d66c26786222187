"""How deep JSON is, counted in its text, against a walk through what it decodes to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossband.protocol.depth import is_deeper
from tests.protocol.strategies import hostile_text

# Strings and keys of what a scanner takes for something else.
tricky = st.text('"\\\\[]{}:, \nä😀', max_size=6)
nested = st.recursive(
    tricky | st.none() | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(tricky, inner, max_size=4),
    max_leaves=30,
)


def depth_of(value: Any) -> int:
    if not isinstance(value, list | dict):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(depth_of, inner), default=0)


@given(nested, st.booleans(), st.sampled_from([None, 2]), st.integers(0, 8))
def test_depth_of_text_is_that_of_its_data(
    value: Any, ascii: bool, indent: int | None, limit: int
) -> None:
    text = json.dumps(value, ensure_ascii=ascii, indent=indent)
    deeper = depth_of(value) > limit
    assert is_deeper(text, limit) is deeper
    assert is_deeper(text.encode(), limit) is deeper


@given(hostile_text, st.integers(0, 8))
def test_any_text_has_an_answer(text: str, limit: int) -> None:
    is_deeper(text, limit)
    is_deeper(text.encode(errors="replace"), limit)


@pytest.mark.parametrize(
    "text",
    [
        "[" + "[]," * 300_000 + "[]]",
        '["' + "[{" * 400_000 + '"]',
        '["' + '\\"[' * 300_000 + '"]',
        '["' + "\\\\" * 400_000 + '","[","[","["]',
    ],
    ids=["wide", "a string of brackets", "quotes in a string", "backslashes"],
)
def test_megabyte_of_brackets_is_not_deep_by_their_number(text: str) -> None:
    json.loads(text)
    assert not is_deeper(text, 2)
    assert is_deeper(text, 1) is text.startswith("[[")
