"""Who is measured: the floor, Crossband and the peers, and how each is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

# 128 bytes of plain text, as in all published figures of this project.
PAYLOAD: Final = ("One hub, three doors: what is published once arrives on each. " * 3)[:127] + "."
# Of servers/crossband_hub.py.
API_KEY: Final = "benchmark"


class Door(NamedTuple):
    """Where clients connect: what client.c calls the protocol, and the path."""

    protocol: str
    path: str


@dataclass(frozen=True, slots=True)
class Contender:
    """A server program and what it can be asked.

    `runtime` says what runs the program: the C compiler's output, this Python, the peers'
    Python, Node.js or nginx.
    """

    name: str
    runtime: str
    program: str
    doors: Mapping[str, Door] = field(default_factory=dict)
    # Text that is sent back over raw WebSocket.
    echo: str | None = None
    # A Socket.IO event that is acknowledged with its argument.
    ack: str | None = None
    # A publication over HTTP: path, extra headers and body; subscribers use the first door.
    publish: tuple[str, str, str] | None = None
    # Publications are posted here instead of to the control port.
    control_path: str | None = None
    # It has processes of its own, and ends them on SIGTERM.
    parent: bool = False
    # Two nodes share a Redis through this: publications are made on the second, clients and
    # what is measured are on the first. None: one node, without Redis.
    through: str | None = None

    @property
    def publish_request(self) -> bytes | None:
        """The whole request of a publication."""
        if self.publish is None:
            return None
        path, headers, body = self.publish
        return (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()


WS: Final = Door("ws", "/ws")
SOCKETIO: Final = Door("sio", "/socket.io/?EIO=4&transport=websocket")
SSE: Final = Door("sse", "/events")
ALL: Final = {"ws": WS, "sio": SOCKETIO, "sse": SSE}

_EVENT: Final = json.dumps({"event": "news", "data": PAYLOAD}, separators=(",", ":"))
_JSON: Final = "Content-Type: application/json\r\n"
_PUBLISH: Final = ("/publish", _JSON, _EVENT)
_ACK: Final = f'421["echo","{PAYLOAD}"]'

FLOOR: Final = Contender(
    "floor",
    "native",
    "floor",
    ALL,
    echo=PAYLOAD,
    ack=_ACK,
    publish=_PUBLISH,
)
CROSSBAND: Final = Contender(
    "crossband",
    "here",
    "crossband_server",
    ALL,
    echo=json.dumps({"type": "echo", "data": PAYLOAD, "id": 1}),
    ack=_ACK,
    publish=(
        "/api/broadcast",
        f"{_JSON}X-API-Key: {API_KEY}\r\n",
        json.dumps({"event": "news", "data": PAYLOAD, "room": "all"}),
    ),
)

NODE_SOCKETIO: Final = Contender(
    "Node socket.io", "node", "node_socketio", {"sio": SOCKETIO}, ack=_ACK, publish=_PUBLISH
)
# One node each, and two that share a Redis.
NODES: Final = (
    FLOOR,
    CROSSBAND,
    replace(CROSSBAND, name="crossband, Redis", through="broker"),
    NODE_SOCKETIO,
    replace(NODE_SOCKETIO, name="socket.io, Redis", through="redis"),
    replace(NODE_SOCKETIO, name="socket.io, streams", through="streams"),
)
WORKERS: Final = replace(
    CROSSBAND, name="crossband, 2 workers", program="crossband_workers", parent=True
)
# A broker alone: what it hears goes nowhere.
BROKER: Final = Contender("crossband, broker", "here", "crossband_broker", through="broker")

CONTENDERS: Final = (
    FLOOR,
    CROSSBAND,
    # The same server: bare text frames, as the peers echo them.
    Contender(
        "crossband, plain",
        "here",
        "crossband_server",
        {"plain": Door("ws-bare", "/ws/plain")},
        echo=PAYLOAD,
    ),
    Contender("Node ws", "node", "node_ws", {"ws": WS}, echo=PAYLOAD, publish=_PUBLISH),
    NODE_SOCKETIO,
    Contender("Node http", "node", "node_sse", {"sse": SSE}, publish=_PUBLISH),
    Contender("websockets", "peers", "websockets_server", {"ws": WS}, echo=PAYLOAD),
    Contender("Starlette", "peers", "starlette_server", {"ws": WS}, echo=PAYLOAD, publish=_PUBLISH),
    Contender("python-socketio", "peers", "python_socketio_server", {"sio": SOCKETIO}, ack=_ACK),
    Contender("sse-starlette", "peers", "sse_starlette_server", {"sse": SSE}),
    Contender(
        "nchan",
        "nginx",
        "nginx",
        # nchan sends no welcome.
        {"ws": Door("ws-bare", "/ws"), "sse": Door("sse-bare", "/events")},
        publish=("/publish", "", PAYLOAD),
        control_path="/publish",
        parent=True,
    ),
)
