"""Frames between the two nodes of a relayed WebSocket: divided, and put together again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossband.transports.engineio import relay
from crossband.transports.engineio.relay import Seam, pieces

FRAMES = st.lists(st.text(max_size=40) | st.binary(max_size=40), max_size=12)


@given(batches=st.lists(FRAMES, max_size=4), piece=st.integers(1, 30))
def test_divided_frames_come_together_again(batches: list[list[str | bytes]], piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "PIECE", piece)
        seam = Seam()
        joined: list[str | bytes] = []
        for frames in batches:
            for part, torn in pieces(frames):
                assert sum(map(len, part)) <= piece
                joined += seam.join(part, torn=torn)
            # What brings no frames comes in between.
            joined += seam.join([], torn=False)
    assert joined == [frame for frames in batches for frame in frames]
