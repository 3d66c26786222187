"""A client's packets come to the same by the quick way, through a decoder, and over polling."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any, Literal
from unittest import mock

from hypothesis import example, given, settings
from hypothesis import strategies as st

from crossband.errors import ProtocolError
from crossband.hub.namespace import Socket
from crossband.protocol import engineio, socketio
from crossband.transports.engineio.packets import SocketIOConnection
from crossband.transports.engineio.polling import _take_body
from tests.bare import BareHub
from tests.link import handshake
from tests.protocol.strategies import hostile_text, json_values
from tests.waiting import until

# What a namespace may be called is not always what JSON's brackets and quotes are balanced in.
NAMESPACES = ["/", "/a", "/]]", '/"', "/é"]


def value(socket: Socket, *args: Any) -> Any:
    return list(args)


def typed(socket: Socket, number: int) -> None:
    socket.emit("seen", number)


async def waits(socket: Socket) -> Any:
    await asyncio.sleep(0)
    return "waited"


async def outcome(
    over: Literal["websocket", "polling"], frames: list[str | bytes]
) -> tuple[Any, ...]:
    """Return what a client of all namespaces gets for these messages, and how it ends."""
    hub = BareHub(recovery=False)
    left: list[tuple[str, str]] = []
    for name in NAMESPACES:
        namespace = hub.of(name)
        for handler in (value, typed, waits):
            namespace.on(handler.__name__, handler)
        namespace.on(
            "disconnect", lambda socket, reason: left.append((socket.namespace.name, reason))
        )
    await hub.start()
    connection = SocketIOConnection(hub.core, mock.Mock(), handshake(), "sid")
    for name in NAMESPACES:
        connection.frame_received("40" + ("" if name == "/" else name + ","))
    await until(lambda: not connection.joining)
    connection.discard_queue()
    if over == "polling":
        body = engineio.encode_messages(frames)
        try:
            await _take_body(connection, body, 0)
        except ProtocolError:
            connection.end("parse error")
    else:
        for frame in frames:
            connection.frame_received(frame)
    await until(lambda: not hub.node._tasks)
    got = [wire.messages for wire in connection.queue]
    closed = connection.closed
    await hub.stop()
    return got, closed, left


# What comes behind the type, the namespace and the id.
event_data = (
    st.builds(
        lambda name, args: json.dumps([name, *args]),
        st.sampled_from(["value", "value", "typed", "waits", "unknown", "connect", 7, "a\n", ""]),
        st.lists(json_values, max_size=2),
    )
    | hostile_text
    | st.integers(63, 66).map(lambda depth: '["value",' + "[" * depth + "]" * depth + "]")
    | st.sampled_from(['["typed",1e999]', '["value","\\ud800"]', '["value","\\ud800", [', "[]"])
)
texts = st.builds(
    "4{}{}{}{}".format,
    st.sampled_from("2222222225613"),
    st.sampled_from(["", *(f"{name}," for name in NAMESPACES[1:]), "/nobody,", "/a?b=c,", "/a"]),
    st.sampled_from(["", "", "0", "17", "9" * 16, "²"]),
    event_data,
).filter(lambda text: engineio.SEPARATOR not in text)
binary = st.sampled_from(
    ['451-["value",{"_placeholder":true,"num":0}]', '451-["value",1]', '451-/a,3["value"]']
)
messages = st.lists(texts | binary | st.sampled_from([b"", b"one"]), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None, database=None)
@given(messages)
@example(["42/]],1" + '["value",' + "[" * 65 + "]" * 65 + "]"])
def test_packets_come_to_the_same_by_every_way(frames: list[str | bytes]) -> None:
    async def every() -> None:
        quick = await outcome("websocket", frames)
        with mock.patch.object(socketio, "read_event", return_value=None):
            assert await outcome("websocket", frames) == quick
        assert await outcome("polling", frames) == quick

    logging.disable()
    try:
        asyncio.run(every())
    finally:
        logging.disable(logging.NOTSET)
