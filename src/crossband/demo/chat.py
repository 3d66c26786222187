"""The chat of the demo: users, rooms, history and typing, on any namespace of a hub.

Uses only what any application can: the names that `crossband` exports.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
import secrets
import time
import unicodedata
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Final

import msgspec

from crossband import AckTimeout, EventError, InvalidMessage, Member, Namespace, Socket

ROOMS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "general": "Whatever is on your mind",
        "help": "Questions, and who knows the answer",
        "music": "What are you listening to?",
        "random": "Everything that fits nowhere else",
    }
)

# Everybody who has a name is in this room, which nobody can ask for: its name has a colon.
EVERYBODY: Final = "chat:everybody"

# Characters.
NAME_LENGTH: Final = 40
CONTENT_LENGTH: Final = 4_000
# Messages a room keeps for users who join. Also bounded in bytes, since a client's outbox is
# bounded and a history is sent as one message.
HISTORY: Final = 100
HISTORY_BYTES: Final = 262_144
# Users whose rates are remembered, the most recent ones.
MEASURED: Final = 10_000
# Typing notices that a user may cause per second; each is shown for three seconds.
KEYSTROKES: Final = 2.0

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=4 * NAME_LENGTH)]
RoomName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Content = Annotated[str, msgspec.Meta(min_length=1, max_length=CONTENT_LENGTH)]
# A bearer secret, like session keys.
Key = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9._-]{16,64}\Z")]
MessageId = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9._-]{8,64}\Z")]


# What clients send.


class Registration(msgspec.Struct):
    """`user:register`: who a client is. Two tabs with the same key are one user."""

    name: Name
    key: Key | None = None


class RoomRef(msgspec.Struct):
    """`room:join` and `room:leave`."""

    room: RoomName


class Draft(msgspec.Struct):
    """`chat:message`. With an id, it can be sent again and arrives only once."""

    room: RoomName
    content: Content
    id: MessageId | None = None


class Keystroke(msgspec.Struct):
    """`chat:typing`; `typing` is false when the user has stopped."""

    room: RoomName
    typing: bool = True


# What clients get.


class User(msgspec.Struct, frozen=True):
    """A user as everybody sees it.

    In presence, `id` is the member's, and the rest its info. `colour` is a number from 0 that
    nobody else here has; everybody sees the same one.
    """

    id: str
    name: str
    colour: int = 0


class Message(msgspec.Struct, frozen=True):
    """`chat:message`, as everybody in the room gets it, the sender included."""

    id: str
    room: str
    user: User
    content: str
    time: datetime


class Welcome(msgspec.Struct, rename="camel"):
    """The answer to `user:register`; lengths are in characters."""

    user: User
    key: str
    rooms: list[RoomInfo]
    name_length: int = NAME_LENGTH
    content_length: int = CONTENT_LENGTH


class RoomInfo(msgspec.Struct):
    """A room that can be joined."""

    name: str
    topic: str


class RoomState(msgspec.Struct):
    """The answer to `room:join`: the history of the room. Presence says who is there."""

    room: str
    messages: list[Message]


class Typing(msgspec.Struct):
    """`user:typing`: ends with `typing` false, or after 3 seconds without another."""

    room: str
    user: User
    typing: bool


class Receipt(msgspec.Struct):
    """The answer to `chat:message`."""

    id: str
    time: datetime
    status: str = "received"


# What the server keeps.


class Allowance:
    """A token bucket: `burst` at once, then `rate` per second."""

    __slots__ = ("_at", "_left", "burst", "rate")

    def __init__(self, burst: float, rate: float) -> None:
        self.burst: Final = burst
        self.rate: Final = rate
        self._left = burst
        # When `_left` was last updated; seconds of any steady clock.
        self._at = 0.0

    def take(self, now: float) -> float:
        """Take one and return 0, or return the seconds until one is there."""
        self._left = min(self.burst, self._left + (now - self._at) * self.rate)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self.rate
        self._left -= 1
        return 0.0


class Spending:
    """How fast a user may act."""

    __slots__ = ("keystrokes", "messages", "moves")

    def __init__(self, burst: int, rate: float, rooms: int) -> None:
        self.messages: Final = Allowance(burst, rate)
        # Enough to go round all the rooms a few times.
        self.moves: Final = Allowance(4 * rooms + burst, rate)
        self.keystrokes: Final = Allowance(burst, KEYSTROKES)


class Room:
    """A room's last messages."""

    __slots__ = ("_bytes", "history", "topic")

    def __init__(self, topic: str) -> None:
        self.topic: Final = topic
        self.history: deque[Message] = deque()
        self._bytes = 0

    def find(self, user: str, id: str | None) -> Message | None:
        """Return a user's message with this id, if it is still kept."""
        kept = (each for each in reversed(self.history) if each.id == id)
        return next((each for each in kept if each.user.id == user), None)

    def remember(self, message: Message) -> None:
        self.history.append(message)
        self._bytes += _size(message)
        while len(self.history) > HISTORY or self._bytes > HISTORY_BYTES:
            self._bytes -= _size(self.history.popleft())


class Chat:
    """A chat on a namespace; `install` makes one.

    Who is here, in which rooms, is the hub's presence, over all nodes. The last messages are in
    the memory of each process, which tell each other of new ones.
    """

    def __init__(
        self, namespace: Namespace, *, rooms: Mapping[str, str], burst: int, rate: float
    ) -> None:
        self._namespace = namespace
        self._burst = burst
        self._rate = rate
        self.rooms: Final = {name: Room(topic) for name, topic in rooms.items()}
        # By the user's id; who acted last is at the end.
        self._spending: OrderedDict[str, Spending] = OrderedDict()
        # Learns what other processes remember. None until the first user joins a room.
        self._learning: asyncio.Task[None] | None = None

    # Coming and going.

    def shows(self, room: str) -> bool:
        """Return whether a room shows who is in it."""
        return room == EVERYBODY or room in self.rooms

    async def admit(self, socket: Socket) -> None:
        """Check whether a client that comes back late is still alone with its name and colour."""
        user = user_of(socket)
        if user is None or not socket.recovered:
            return
        others = [other for other in await self._everybody() if other.id != user.id]
        if any(_alike(other.name) == _alike(user.name) for other in others):
            # It must choose another.
            socket.data.clear()
            await socket.leave(*(socket.rooms - {socket.id}))
        elif any(other.colour == user.colour for other in others):
            self._note(socket, User(user.id, user.name, self._free_colour(user.id, others)))

    async def register(self, socket: Socket, registration: Registration) -> Welcome:
        """Register who this client is. A known key makes it another tab of that user."""
        name = _clean(registration.name)
        key = registration.key or secrets.token_urlsafe(24)
        id = _public_id(key)
        already = user_of(socket)
        if already is not None and already.id != id:
            raise EventError("This connection is registered already", code="registered")
        # On several nodes, two users may ask for one name, or get one colour, at the same
        # moment; a chat with more at stake would ask a database.
        everybody = await self._everybody()
        user = next((each for each in everybody if each.id == id), None)
        if user is None:
            if any(_alike(each.name) == _alike(name) for each in everybody):
                raise EventError(
                    "Somebody here has this name already", code="name_taken", name=name
                )
            user = User(id, name, self._free_colour(id, everybody))
        self._note(socket, user)
        # The room of all the user's tabs is to leave them out.
        await socket.join(EVERYBODY, _own_room(user))
        rooms = [RoomInfo(name, room.topic) for name, room in self.rooms.items()]
        return Welcome(user, key, rooms)

    async def join(self, socket: Socket, ref: RoomRef) -> RoomState:
        """Join a room: the answer is its history."""
        user = self._user(socket)
        room = self._room(ref.room)
        await self._learn()
        if ref.room not in socket.rooms:
            self._spend(self._spending_of(user).moves)
            await socket.join(ref.room)
        return RoomState(ref.room, list(room.history))

    async def leave(self, socket: Socket, ref: RoomRef) -> dict[str, str]:
        """Leave a room; leaving one that was never joined is not an error."""
        self._user(socket)
        self._room(ref.room)
        await socket.leave(ref.room)
        return {"status": "left", "room": ref.room}

    # Talking.

    async def message(self, socket: Socket, draft: Draft) -> Receipt:
        """Send a message to a room, or only acknowledge it if its id was already sent."""
        user = self._user(socket)
        room = self._room(draft.room)
        if draft.room not in socket.rooms:
            raise EventError("Join the room first", code="not_in_room", room=draft.room)
        known = room.find(user.id, draft.id) if draft.id is not None else None
        if known is not None:
            return Receipt(known.id, known.time)
        content = draft.content.strip()
        if not content:
            raise InvalidMessage("Expected more than white space", path="$.content")
        self._spend(self._spending_of(user).messages)
        id = draft.id or secrets.token_urlsafe(12)
        message = Message(id, draft.room, user, content, datetime.now(UTC))
        room.remember(message)
        # Before the event: whoever has seen it and joins elsewhere is to find it there.
        self._namespace.server_emit("chat:said", message)
        await self._namespace.to(draft.room).emit("chat:message", message)
        return Receipt(id, message.time)

    async def typing(self, socket: Socket, keystroke: Keystroke) -> None:
        """Tell the others in the room that this user is typing, or has stopped."""
        user = self._user(socket)
        if keystroke.room not in socket.rooms or keystroke.room not in self.rooms:
            return
        # Notices over the rate say nothing new and are dropped.
        if self._spending_of(user).keystrokes.take(time.monotonic()) == 0:
            # Volatile: nobody needs to catch up on it.
            others = self._namespace.to(keystroke.room).except_(_own_room(user))
            others.volatile.emit("user:typing", Typing(keystroke.room, user, keystroke.typing))

    # Other processes that serve the same chat.

    def said(self, message: Message) -> None:
        """Remember what was said at another server."""
        room = self.rooms.get(message.room)
        if room is not None and room.find(message.user.id, message.id) is None:
            room.remember(message)

    def history(self) -> list[Message]:
        """Return all that is remembered here, for a server that has just started."""
        return [message for room in self.rooms.values() for message in room.history]

    async def _learn(self) -> None:
        """Remember what the other servers do, once."""
        if self._learning is None:
            self._learning = asyncio.ensure_future(self._ask_others())
        await asyncio.shield(self._learning)

    async def _ask_others(self) -> None:
        try:
            answers = await self._namespace.server_emit_with_ack("chat:history")
        except AckTimeout as error:
            answers = error.responses
        for answer in answers:
            for message in msgspec.convert(answer, list[Message]):
                self.said(message)

    # The rules behind them.

    async def _everybody(self) -> list[User]:
        found = await self._namespace.members(EVERYBODY)
        return [msgspec.convert({"id": each.id, **each.info}, User) for each in found.members]

    def _note(self, socket: Socket, user: User) -> None:
        # Plain data: the session is kept outside of this process.
        socket.data["user"] = msgspec.to_builtins(user)

    def _free_colour(self, id: str, everybody: Iterable[User]) -> int:
        """Return a colour that no user here has, and no author of a kept message."""
        taken = {user.colour for user in everybody}
        before: int | None = None
        for message in self.history():
            if message.user.id == id:
                before = message.user.colour
            else:
                taken.add(message.user.colour)
        # Someone who comes back looks the same as before.
        if before is not None and before not in taken:
            return before
        return next(colour for colour in itertools.count() if colour not in taken)

    def _user(self, socket: Socket) -> User:
        user = user_of(socket)
        if user is None:
            raise EventError("Say who you are first: user:register", code="not_registered")
        return user

    def _room(self, name: str) -> Room:
        room = self.rooms.get(name)
        if room is None:
            raise EventError("There is no such room", code="unknown_room", room=name)
        return room

    def _spending_of(self, user: User) -> Spending:
        spending = self._spending.pop(user.id, None)
        if spending is None:
            spending = Spending(self._burst, self._rate, len(self.rooms))
        self._spending[user.id] = spending
        if len(self._spending) > MEASURED:
            self._spending.popitem(last=False)
        return spending

    def _spend(self, allowance: Allowance) -> None:
        seconds = allowance.take(time.monotonic())
        if seconds:
            raise EventError(code="rate_limited", retryAfter=round(seconds, 3))


def user_of(socket: Socket) -> User | None:
    """Return the user that a client registered as."""
    data = socket.data.get("user")
    return None if data is None else msgspec.convert(data, User)


def member_of(socket: Socket) -> Member | None:
    """Return as whom a client shows; not at all before it has registered."""
    user = user_of(socket)
    return None if user is None else Member(user.id, {"name": user.name, "colour": user.colour})


def install(
    namespace: Namespace,
    *,
    rooms: Mapping[str, str] = ROOMS,
    grace: float = 5.0,
    burst: int = 8,
    rate: float = 1.0,
) -> Chat:
    """Put a chat on a namespace, for instance `install(hub.of("/chat"))`.

    `rooms` maps names to topics. A user whose connection was cut counts as having left after
    `grace` seconds. Each user may send `burst` messages at once, then `rate` per second.
    """
    chat = Chat(namespace, rooms=rooms, burst=burst, rate=rate)
    namespace.presence(chat.shows, member=member_of, grace=grace)
    namespace.use(chat.admit)
    namespace.on("user:register", chat.register)
    namespace.on("room:join", chat.join)
    namespace.on("room:leave", chat.leave)
    namespace.on("chat:message", chat.message)
    namespace.on("chat:typing", chat.typing)
    namespace.on_server("chat:said")(chat.said)
    namespace.on_server("chat:history")(chat.history)
    return chat


def _own_room(user: User) -> str:
    # The names of rooms that can be joined have no colon.
    return f"user:{user.id}"


def _public_id(key: str) -> str:
    """Return the user id for a key: a one-way hash, stable across restarts."""
    return hashlib.blake2s(key.encode(), digest_size=8, person=b"chatuser").hexdigest()


# Characters that change the direction of text. Emoji need the other invisible characters.
_TURNS: Final = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def _clean(name: str) -> str:
    """Return a name as it is shown. Raises InvalidMessage if it would be invisible."""
    clean = " ".join(_TURNS.sub("", unicodedata.normalize("NFC", name)).split())
    if len(clean) > NAME_LENGTH:
        raise InvalidMessage(f"Expected a name of at most {NAME_LENGTH} characters", path="$.name")
    categories = {unicodedata.category(character) for character in clean}
    if "Cc" in categories or all(category[0] in "CMZ" for category in categories):
        raise InvalidMessage("Expected a name that can be read", path="$.name")
    return clean


def _alike(name: str) -> str:
    """Return a form that is the same for names that people would confuse."""
    return unicodedata.normalize("NFKC", name).casefold().replace("\u200d", "")


def _size(message: Message) -> int:
    """Return roughly how many bytes a message takes on the wire."""
    return len(message.content.encode()) + 4 * len(message.user.name) + 160


__all__ = ["ROOMS", "Chat", "install"]
