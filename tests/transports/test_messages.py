"""The WebSocket door reads envelopes itself, and comes to the same as what reads those posted."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from crossband.errors import EventError
from crossband.hub.namespace import Socket
from crossband.protocol import envelope
from crossband.transports.messages import answer_envelope
from crossband.transports.websocket import WebSocketDoor
from tests.bare import BareHub
from tests.link import Link, join
from tests.protocol.strategies import hostile_text, json_values

envelopes = st.builds(
    '{{"type":{}{}{}}}'.format,
    st.sampled_from(['"value"', '"ack"', '"event","event":"value"', '"error"', '"unknown"', "1"]),
    st.sampled_from(["", ',"id":0', ',"id":1', ',"id":-1', ',"id":null', ',"other":[]'])
    | hostile_text.map(',"id":{}'.format),
    st.sampled_from(["", ',"data":null', ',"data":[1,2]', ',"data":"\\ud800"', ',"data":1e999'])
    | hostile_text.map(',"data":{}'.format),
)
frames = envelopes | hostile_text | json_values.map(str)


def read_as_posted(link: Link, socket: Socket, frame: str) -> None:
    try:
        answer_envelope(socket, envelope.decode(frame))
    except EventError as error:
        ack_id = error.details.pop("id", None)
        link.push(socket.codec.problem("/", error.to_dict(), ack_id))


async def both(frames: list[str]) -> tuple[Any, Any]:
    """Return what two clients get who send the same, and have both been asked something."""
    hub = BareHub(recovery=False)
    hub.on("value", lambda socket, *args: list(args))
    await hub.start()
    door = mock.Mock()
    got: list[Any] = []
    for posted in (False, True):
        link = Link(hub.ticker, stalled=False)
        socket = await join(hub, link)
        owed = socket.expect_ack(0)
        await asyncio.sleep(0)
        link.taken.clear()
        for frame in frames:
            if posted:
                read_as_posted(link, socket, frame)
            else:
                WebSocketDoor._read_envelope(door, link, socket, frame)  # type: ignore[arg-type]
        await asyncio.sleep(0)
        got.append((link.taken, owed.result() if owed.done() else "waits"))
        owed.cancel()
    await hub.stop()
    return got[0], got[1]


@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(frames, min_size=1, max_size=4))
def test_envelope_is_read_the_same_at_the_door_and_posted(frames: list[str]) -> None:
    at_the_door, posted = asyncio.run(both(frames))
    assert at_the_door == posted
