"""What the codec tests draw from: JSON values, names, and text made to hurt."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

MAX_ID = 2**53 - 1

# Lone surrogates included: str can hold them, no wire can.
any_text = st.text(st.characters())
text = st.text()
ids = st.integers(0, MAX_ID)
cursors = st.text("abcXYZ019._-", min_size=1, max_size=40)
names = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40)
namespaces = st.just("/") | names.map(lambda name: "/" + name.replace(",", "").replace("?", ""))

_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_ID, MAX_ID)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text
)


def values(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    # A key called "_placeholder" stands for a binary value, so no value of ours has one.
    keys = text.filter(lambda key: key != "_placeholder")
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=6,
    )


json_values = values(_scalars)
binary_values = values(_scalars | st.binary(max_size=20))
# Pieces that reach further into a parser than random characters do.
# fmt: off
_pieces = (
    "0", "1", "2", "3", "4", "5", "6", "b", "-", "/", ",", "?", "[", "]", "{", "}", ":", '"',
    '"a"', '["a"', '"_placeholder":true', '"num":-1', '"type":', '"data":', '"id":', "1e999",
    "null", "-0", "\\ud800", "\ud800", "\x1e", "\x00", "\n", "\r", " ", "\ufeff", "²", "٣", "é",
    "9" * 17, "[" * 50, "AA==", "=", "/a,", "51-", '["a"]', '{"a":1}',
)
# fmt: on
hostile_text = st.lists(st.sampled_from(_pieces), max_size=12).map("".join)
