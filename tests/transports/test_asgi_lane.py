"""What a lane over ASGI takes from a server that counts messages by its own limit."""

from __future__ import annotations

from unittest import mock

from hypothesis import example, given, settings
from hypothesis import strategies as st

from crossband.transports.asgi import ASGIFrameLane

LIMIT = 40


@settings(max_examples=100, deadline=None, database=None)
@given(st.text("aé€😀", max_size=LIMIT + 1) | st.binary(max_size=LIMIT + 1))
@example("é" * (LIMIT // 2))
@example("é" * (LIMIT // 2) + "a")
@example("😀" * (LIMIT // 4))
@example("😀" * (LIMIT // 4) + "a")
def test_message_is_large_by_its_bytes(message: str | bytes) -> None:
    lane = ASGIFrameLane(mock.Mock(), mock.Mock(), limit=LIMIT)
    size = len(message.encode() if isinstance(message, str) else message)
    assert lane._is_large(message) is (size > LIMIT)
