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
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Final

import msgspec

from crossband import EventError, InvalidMessage, Namespace, Socket

ROOMS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "general": "Whatever is on your mind",
        "help": "Questions, and who knows the answer",
        "music": "What are you listening to?",
        "random": "Everything that fits nowhere else",
    }
)

# Characters.
NAME_LENGTH: Final = 40
CONTENT_LENGTH: Final = 4_000
# Messages a room keeps for users who join. Also bounded in bytes, since a client's outbox is
# bounded and a history is sent as one message.
HISTORY: Final = 100
HISTORY_BYTES: Final = 262_144
# Users that `room:users` lists; it always has the total.
LISTED: Final = 1_000
# A user's last messages, kept so that one that is sent again is recognized.
REMEMBERED: Final = 200
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

    `colour` is a number from 0 that nobody else here has; everybody sees the same one.
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
    """The answer to `room:join`: the history of the room."""

    room: str
    messages: list[Message]


class RoomUsers(msgspec.Struct):
    """`room:users`: who is there, on joining. `user:joined` and `user:left` follow."""

    room: str
    users: list[User]
    total: int


class Presence(msgspec.Struct):
    """`user:joined` and `user:left`, for the others in the room."""

    room: str
    user: User
    total: int
    time: datetime


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


@dataclass(slots=True)
class Person:
    """A user who is here, in one tab or several."""

    user: User
    messages: Allowance
    moves: Allowance
    keystrokes: Allowance
    # By the id of each tab's socket, the rooms that tab is in.
    tabs: dict[str, set[str]] = field(default_factory=dict)
    # Messages by their ids, oldest first.
    sent: OrderedDict[str, Message] = field(default_factory=OrderedDict)

    def is_in(self, room: str) -> bool:
        return any(room in rooms for rooms in self.tabs.values())


class Room:
    """A room's people and their last messages."""

    __slots__ = ("_bytes", "history", "people", "topic")

    def __init__(self, topic: str) -> None:
        self.topic: Final = topic
        # By id, in the order of joining.
        self.people: dict[str, User] = {}
        self.history: deque[Message] = deque()
        self._bytes = 0

    def remember(self, message: Message) -> None:
        self.history.append(message)
        self._bytes += _size(message)
        while len(self.history) > HISTORY or self._bytes > HISTORY_BYTES:
            self._bytes -= _size(self.history.popleft())


class Chat:
    """A chat on a namespace; `install` makes one.

    Its rooms, people and messages are in the memory of this process.
    """

    def __init__(
        self,
        namespace: Namespace,
        *,
        rooms: Mapping[str, str],
        grace: float,
        burst: int,
        rate: float,
    ) -> None:
        self._namespace = namespace
        self._grace = grace
        self._burst = burst
        self._rate = rate
        self.rooms: Final = {name: Room(topic) for name, topic in rooms.items()}
        # By the user's id.
        self.people: dict[str, Person] = {}
        # Names in use, as `_alike` compares them.
        self._names: set[str] = set()
        # By the id of the disconnected socket; when the timer fires, the tab has left.
        self._leaving: dict[str, asyncio.TimerHandle] = {}

    # Coming and going.

    async def connect(self, socket: Socket) -> None:
        """Restore the user and rooms of a client that resumed its session."""
        self._stop_leaving(socket.id)
        user = self._user_of(socket)
        if user is None or not socket.recovered:
            return
        person = self.people.get(user.id)
        if person is None and self._is_taken(user.name):
            # Somebody else has the name by now: the client must choose another.
            socket.data.clear()
            await socket.leave(*(socket.rooms - {socket.id}))
            return
        is_late = person is None
        person = person or self._arrive(user.id, user.name)
        person.tabs.setdefault(socket.id, set())
        for room in self.rooms.keys() & socket.rooms:
            self._enter(person, socket, room)
            if is_late:
                # Somebody else may have its colour by now.
                self._tell_users(socket, room)

    async def disconnect(self, socket: Socket, reason: str) -> None:
        """Leave at once if a client says goodbye, else after waiting for it to come back."""
        if self._user_of(socket) is None or socket.id in self._namespace.sockets:
            return
        if reason in ("client namespace disconnect", "server shutting down"):
            self._depart(socket)
        else:
            self._stop_leaving(socket.id)
            self._leaving[socket.id] = asyncio.get_running_loop().call_later(
                self._grace, self._depart, socket
            )

    async def register(self, socket: Socket, registration: Registration) -> Welcome:
        """Register who this client is. A known key makes it another tab of that user."""
        name = _clean(registration.name)
        key = registration.key or secrets.token_urlsafe(24)
        id = _public_id(key)
        already = self._user_of(socket)
        if already is not None and already.id != id:
            raise EventError("This connection is registered already", code="registered")
        person = self.people.get(id)
        if person is None:
            if self._is_taken(name):
                raise EventError(
                    "Somebody here has this name already", code="name_taken", name=name
                )
            person = self._arrive(id, name)
        person.tabs.setdefault(socket.id, set())
        socket.data["user"] = {"id": id, "name": person.user.name}
        # The room of all the user's tabs, to send something to them or to leave them out.
        await socket.join(_own_room(person.user))
        rooms = [RoomInfo(name, room.topic) for name, room in self.rooms.items()]
        return Welcome(person.user, key, rooms)

    async def join(self, socket: Socket, ref: RoomRef) -> RoomState:
        """Join a room: the answer is its history, and `room:users` says who is there."""
        person = self._person(socket)
        room = self._room(ref.room)
        if ref.room not in person.tabs[socket.id]:
            self._spend(person.moves)
            await socket.join(ref.room)
            self._enter(person, socket, ref.room)
        self._tell_users(socket, ref.room)
        return RoomState(ref.room, list(room.history))

    async def leave(self, socket: Socket, ref: RoomRef) -> dict[str, str]:
        """Leave a room; leaving one that was never joined is not an error."""
        person = self._person(socket)
        self._room(ref.room)
        await socket.leave(ref.room)
        self._exit(person, socket.id, ref.room)
        return {"status": "left", "room": ref.room}

    # Talking.

    async def message(self, socket: Socket, draft: Draft) -> Receipt:
        """Send a message to a room, or only acknowledge it if its id was already sent."""
        person = self._person(socket)
        room = self._room(draft.room)
        if draft.room not in person.tabs[socket.id]:
            raise EventError("Join the room first", code="not_in_room", room=draft.room)
        known = person.sent.get(draft.id) if draft.id is not None else None
        if known is not None:
            return Receipt(known.id, known.time)
        content = draft.content.strip()
        if not content:
            raise InvalidMessage("Expected more than white space", path="$.content")
        self._spend(person.messages)
        id = draft.id or secrets.token_urlsafe(12)
        message = Message(id, draft.room, person.user, content, datetime.now(UTC))
        room.remember(message)
        person.sent[id] = message
        while len(person.sent) > REMEMBERED:
            person.sent.popitem(last=False)
        await self._namespace.to(draft.room).emit("chat:message", message)
        return Receipt(id, message.time)

    async def typing(self, socket: Socket, keystroke: Keystroke) -> None:
        """Tell the others in the room that this user is typing, or has stopped."""
        person = self._person(socket)
        if keystroke.room not in person.tabs[socket.id]:
            return
        # Notices over the rate say nothing new and are dropped.
        if person.keystrokes.take(time.monotonic()) == 0:
            # Volatile: nobody needs to catch up on it.
            others = self._namespace.to(keystroke.room).except_(_own_room(person.user))
            others.volatile.emit(
                "user:typing", Typing(keystroke.room, person.user, keystroke.typing)
            )

    # The rules behind them.

    def _arrive(self, id: str, name: str) -> Person:
        user = User(id, name, self._free_colour(id))
        messages = Allowance(self._burst, self._rate)
        # Enough to go round all the rooms a few times.
        moves = Allowance(4 * len(self.rooms) + self._burst, self._rate)
        person = Person(user, messages, moves, Allowance(self._burst, KEYSTROKES))
        self.people[user.id] = person
        self._names.add(_alike(name))
        return person

    def _free_colour(self, id: str) -> int:
        """Return a colour that no user here has, and no author of a kept message."""
        taken = {person.user.colour for person in self.people.values()}
        before: int | None = None
        for message in (each for room in self.rooms.values() for each in room.history):
            if message.user.id == id:
                before = message.user.colour
            else:
                taken.add(message.user.colour)
        # Someone who comes back looks the same as before.
        if before is not None and before not in taken:
            return before
        return next(colour for colour in itertools.count() if colour not in taken)

    def _enter(self, person: Person, socket: Socket, name: str) -> None:
        """Note that a tab is in a room; tell the others if it is the user's first."""
        is_first = not person.is_in(name)
        person.tabs[socket.id].add(name)
        if is_first:
            self.rooms[name].people[person.user.id] = person.user
            self._announce("user:joined", name, person.user)

    def _exit(self, person: Person, tab: str, name: str) -> None:
        """Note that a tab left a room; tell the others if it was the user's last."""
        if name not in person.tabs[tab]:
            return
        person.tabs[tab].discard(name)
        if not person.is_in(name):
            del self.rooms[name].people[person.user.id]
            self._announce("user:left", name, person.user)

    def _tell_users(self, socket: Socket, name: str) -> None:
        people = self.rooms[name].people
        listed = list(itertools.islice(people.values(), LISTED))
        socket.emit("room:users", RoomUsers(name, listed, len(people)))

    def _announce(self, event: str, name: str, user: User) -> None:
        if not self._namespace.hub.started:
            return
        total = len(self.rooms[name].people)
        others = self._namespace.to(name).except_(_own_room(user))
        others.emit(event, Presence(name, user, total, datetime.now(UTC)))

    def _depart(self, socket: Socket) -> None:
        """Forget a tab; with the last tab, also the user."""
        self._stop_leaving(socket.id)
        user = self._user_of(socket)
        person = self.people.get(user.id) if user is not None else None
        if person is None or socket.id not in person.tabs:
            return
        for room in list(person.tabs[socket.id]):
            self._exit(person, socket.id, room)
        del person.tabs[socket.id]
        if not person.tabs:
            del self.people[person.user.id]
            self._names.discard(_alike(person.user.name))

    def _stop_leaving(self, tab: str) -> None:
        timer = self._leaving.pop(tab, None)
        if timer is not None:
            timer.cancel()

    def _user_of(self, socket: Socket) -> User | None:
        """Return the user that a client registered as."""
        # It is plain data: a session must survive being stored elsewhere.
        data = socket.data.get("user")
        return None if data is None else msgspec.convert(data, User)

    def _person(self, socket: Socket) -> Person:
        user = self._user_of(socket)
        person = self.people.get(user.id) if user is not None else None
        if person is None or socket.id not in person.tabs:
            raise EventError("Say who you are first: user:register", code="not_registered")
        return person

    def _room(self, name: str) -> Room:
        room = self.rooms.get(name)
        if room is None:
            raise EventError("There is no such room", code="unknown_room", room=name)
        return room

    def _is_taken(self, name: str) -> bool:
        return _alike(name) in self._names

    def _spend(self, allowance: Allowance) -> None:
        seconds = allowance.take(time.monotonic())
        if seconds:
            raise EventError(code="rate_limited", retryAfter=round(seconds, 3))


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
    chat = Chat(namespace, rooms=rooms, grace=grace, burst=burst, rate=rate)
    namespace.on("connect", chat.connect)
    namespace.on("disconnect", chat.disconnect)
    namespace.on("user:register", chat.register)
    namespace.on("room:join", chat.join)
    namespace.on("room:leave", chat.leave)
    namespace.on("chat:message", chat.message)
    namespace.on("chat:typing", chat.typing)
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
