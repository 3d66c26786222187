"""The messages between nodes over the bus: one tagged union, and the answers.

A node decodes what it hears against these types, and drops what does not fit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from crossband.broker import Session
from crossband.broker.bus import MAX_MESSAGE
from crossband.errors import EncodeError
from crossband.protocol.payload import Payload

logger: Final = logging.getLogger("crossband")

# Bytes of clients in a page: encoding them does not hold up a node's own clients.
PAGE_SIZE: Final = 1_048_576
# Bytes of a message that are left for what surrounds its contents.
_ROOM: Final = 1_024


class Choice(msgspec.Struct, frozen=True, array_like=True):
    """Some sockets of a namespace: in any of `rooms`, and in none of `except_`."""

    namespace: str
    # Empty means all sockets.
    rooms: tuple[str, ...] = ()
    except_: tuple[str, ...] = ()


class Count(msgspec.Struct, frozen=True, tag="count"):
    """Count these sockets. Answered with a number."""

    choice: Choice


class Fetch(msgspec.Struct, frozen=True, tag="fetch"):
    """Describe these sockets, a page of them at a time. Answered with Fetched."""

    choice: Choice
    # Only those whose ids come after this one.
    after: str = ""


class Join(msgspec.Struct, frozen=True, tag="join"):
    """Make these sockets join rooms. Answered with Done."""

    choice: Choice
    names: tuple[str, ...]


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """Make these sockets leave rooms. Answered with Done."""

    choice: Choice
    names: tuple[str, ...]


class Disconnect(msgspec.Struct, frozen=True, tag="disconnect"):
    """Disconnect these sockets, or their whole connections. Answered with Done."""

    choice: Choice
    close: bool = False


class Gather(msgspec.Struct, frozen=True, tag="gather"):
    """Send these sockets an event and gather acknowledgements. Answered with Gathered."""

    choice: Choice
    event: str
    payload: Payload
    # Seconds.
    timeout: float


class ServerEvent(msgspec.Struct, frozen=True, tag="server event"):
    """An event for the servers of a namespace. Answered with Replied."""

    namespace: str
    event: str
    payload: Payload


class Hand(msgspec.Struct, frozen=True, tag="hand"):
    """Hand a client over that came back elsewhere. Answered with Handed."""

    namespace: str
    key: str
    # The take number: whatever this node has from before is over.
    take: int


class Departing(msgspec.Struct, frozen=True, tag="departing"):
    """Wait for a client's disconnect handlers. Answered with true once they have ended."""

    namespace: str
    key: str


class Locate(msgspec.Struct, frozen=True, tag="locate"):
    """Where is a client with this offset, which is not a cursor? Answered with Located."""

    namespace: str
    key: str
    offset: str


class Revoked(msgspec.Struct, frozen=True, tag="revoked"):
    """A user was revoked. Answered with the number of connections that this ended."""

    user: str
    # Seconds since 1970.
    time: float


class CountUser(msgspec.Struct, frozen=True, tag="count user"):
    """Count a user's connections, except one session's. Answered with a number."""

    user: str
    namespace: str
    # The session of the client that is connecting over there; empty for none.
    key: str = ""


class Used(msgspec.Struct, frozen=True, tag="used"):
    """Charge users with the messages that they sent here. Not answered."""

    users: dict[str, int]


class Report(msgspec.Struct, frozen=True, tag="report"):
    """Report what this node has. Answered with what `Status.here` returns."""


# From door to door: requests and WebSockets that reached a node which has not got their client.
# Each of these exchanges has a number of the node that begins it.


class Head(msgspec.Struct, frozen=True, array_like=True):
    """The head of an HTTP request, as it reached a node."""

    method: str
    # Below the mount point.
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    # Of the client, without the port. None over a unix socket.
    address: str | None
    scheme: str
    http_version: str


class Serve(msgspec.Struct, frozen=True, tag="serve"):
    """Answer an HTTP request to a door of yours. Answered with Served."""

    number: int
    door: Literal["socketio", "events"]
    head: Head
    # The start of its body.
    body: bytes
    # There is more of it, to be asked for.
    more: bool


class More(msgspec.Struct, frozen=True, tag="more"):
    """Send the next part of a request's body, which you have. Answered with Part."""

    number: int


class Rest(msgspec.Struct, frozen=True, tag="rest"):
    """Send the next part of a response's body, which you have. Answered with Part."""

    number: int
    # Where it starts.
    start: int


class Delivered(msgspec.Struct, frozen=True, tag="delivered"):
    """The answer to a request was passed on to its client. Not answered."""

    # As in `Serve`.
    number: int


class HungUp(msgspec.Struct, frozen=True, tag="hung up"):
    """The client of a request no longer waits for its answer."""

    number: int
    # It does, but this node stops: a poll should be answered with what is there.
    hurry: bool = False


class Seek(msgspec.Struct, frozen=True, tag="seek"):
    """Have you the event stream of this client? Answered with a bool."""

    sid: str


class Knock(msgspec.Struct, frozen=True, tag="knock"):
    """A WebSocket here asks for an Engine.IO session of yours. Answered with Knocked."""

    number: int
    sid: str
    # It takes no binary frames.
    text_only: bool


def _check_frames(frames: list[Any]) -> None:
    # msgspec has no type for "text or bytes".
    if not all(type(frame) is str or type(frame) is bytes for frame in frames):
        raise TypeError("frames are texts and bytes")


class Up(msgspec.Struct, frozen=True, tag="up", omit_defaults=True):
    """What a relayed WebSocket's client did, for the node that has its session."""

    number: int
    # Counts the messages of this exchange from 1: a gap is the end of it.
    index: int
    # Texts and bytes.
    frames: list[Any] = []
    # The last frame goes on in the next message.
    torn: bool = False
    # Characters and bytes of all that was written to the client so far.
    written: int = 0
    # A message was larger than may be.
    too_large: bool = False
    # The WebSocket has ended.
    lost: bool = False

    def __post_init__(self) -> None:
        _check_frames(self.frames)


class Moved(msgspec.Struct, frozen=True, array_like=True):
    """An Engine.IO session that goes on at the node of its WebSocket."""

    sid: str
    text_only: bool
    # What its client has sent so far, none of it looked at.
    early: list[Any]
    # Its handshake, as it was made.
    headers: dict[str, str]
    query: dict[str, list[str]]
    address: str | None
    time: float
    path: str
    secure: bool

    def __post_init__(self) -> None:
        _check_frames(self.early)


class Down(msgspec.Struct, frozen=True, tag="down", omit_defaults=True):
    """What to do with a relayed WebSocket, for the node that its client reached."""

    number: int
    # As that of Up.
    index: int
    # Texts and bytes.
    frames: list[Any] = []
    torn: bool = False
    # Stop reading, or go on.
    hold: bool | None = None
    # The client's upgrade is done: keep the session yourself, or relay to the end.
    moved: Moved | None = None
    stays: bool = False
    # Close it, for this code and reason; `now` if it is behind.
    code: int = 0
    reason: str = ""
    now: bool = False

    def __post_init__(self) -> None:
        _check_frames(self.frames)


class Check(msgspec.Struct, frozen=True, tag="check"):
    """Which of these exchanges do you still know? Answered with Checked.

    By number: how many messages you were sent for it.
    """

    sent: dict[int, int]


Exchange = Serve | More | Rest | HungUp | Delivered | Seek | Knock | Up | Down | Check
Message = (
    Count
    | Fetch
    | Join
    | Leave
    | Disconnect
    | Gather
    | ServerEvent
    | Hand
    | Departing
    | Locate
    | Revoked
    | CountUser
    | Used
    | Report
    | Exchange
)


class Profile(msgspec.Struct, frozen=True):
    """A client as other nodes may see it: nothing in it is secret."""

    id: str
    rooms: list[str]
    data: dict[str, Any]
    transport: str
    user: str | None
    address: str | None
    # When it connected, in seconds since 1970.
    time: float
    path: str
    secure: bool
    # Without cookies and tokens.
    headers: dict[str, str]


class Fetched(msgspec.Struct, frozen=True):
    """Some clients, in the order of their ids."""

    profiles: list[Profile]
    # There are others, after the last of these.
    more: bool = False


class Done(msgspec.Struct, frozen=True):
    """It was done, or failed for some socket: code, text and details of the error."""

    code: str | None = None
    error: str = ""
    details: dict[str, Any] = {}


class Gathered(msgspec.Struct, frozen=True):
    """Acknowledgements, and how many clients still owe theirs."""

    answers: list[Any]
    missing: int


class Replied(msgspec.Struct, frozen=True):
    """What the handler of a server event returned."""

    payload: Payload


class Located(msgspec.Struct, frozen=True):
    """The cursor after which the client continues; None if the node does not know it."""

    cursor: str | None


class Served(msgspec.Struct, frozen=True):
    """The answer to a request; status 0 if the node has no such client."""

    status: int
    headers: list[tuple[bytes, bytes]] = []
    body: bytes = b""
    # There is more of the body, to be asked for.
    more: bool = False


class Part(msgspec.Struct, frozen=True):
    """A part of a body."""

    body: bytes
    more: bool
    # The client hung up instead, or was too slow.
    gone: bool = False
    late: bool = False


class Knocked(msgspec.Struct, frozen=True):
    """Whether a WebSocket may ask for a session."""

    # "taken": it is carried by a WebSocket, or another one asks for it.
    outcome: Literal["free", "taken", "unknown", "stopping"]


class Checked(msgspec.Struct, frozen=True):
    """Those exchanges that are known, and how many messages were sent for each."""

    sent: dict[int, int]


class Handed(msgspec.Struct, frozen=True):
    """The session as its client's last node knew it; None if it had no such client."""

    session: Session | None
    # Its disconnect handlers still run.
    leaving: bool = False


_decoder: Final = msgspec.msgpack.Decoder(Message)
encode: Final = msgspec.msgpack.Encoder().encode


def encode_fitting(message: Message) -> bytes:
    """Return a message as bytes. Raises EncodeError if it is too large for the bus."""
    body = encode(message)
    if len(body) > MAX_MESSAGE:
        raise EncodeError(
            f"what goes to other nodes has at most {MAX_MESSAGE} bytes, not {len(body)}"
        )
    return body


def fetched(profiles: Iterable[Profile]) -> bytes:
    """Return a page of clients as bytes, as many as its size allows."""
    page: list[msgspec.Raw] = []
    size = 0
    for profile in profiles:
        raw = encode(profile)
        if len(raw) > PAGE_SIZE:
            logger.error("the data of client %s is too large for other nodes", profile.id)
            raw = encode(msgspec.structs.replace(profile, data={}))
        size += len(raw)
        if size > PAGE_SIZE:
            return encode({"profiles": page, "more": True})
        page.append(msgspec.Raw(raw))
    return encode({"profiles": page, "more": False})


def gathered(answers: list[Any], missing: int) -> bytes:
    """Return acknowledgements as bytes; those that do not fit count as missing."""
    fitting: list[msgspec.Raw] = []
    size = 0
    for answer in answers:
        raw = _encoded(answer)
        if raw is not None and size + len(raw) <= MAX_MESSAGE - _ROOM:
            size += len(raw)
            fitting.append(msgspec.Raw(raw))
    if len(fitting) < len(answers):
        logger.error(
            "%d acknowledgements have no form between nodes: numbers of more than 64 bits, nested "
            "too deeply, or more than %d bytes together",
            len(answers) - len(fitting),
            MAX_MESSAGE,
        )
    return encode({"answers": fitting, "missing": missing + len(answers) - len(fitting)})


def _encoded(answer: Any) -> bytes | None:
    """Return an acknowledgement as bytes; None if the other node could not read it."""
    try:
        raw = encode(answer)
        msgspec.msgpack.decode(raw)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    return raw


def decode(body: bytes) -> Message:
    """Return a message. Raises msgspec.DecodeError if it is not one."""
    message: Message = _decoder.decode(body)
    return message
