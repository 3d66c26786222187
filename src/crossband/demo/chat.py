"""The chat of the demo: users, rooms, history and typing, on any namespace of a hub.

Written with what any application has: the names that `crossband` exports, and nothing below.
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
# What a room remembers for those who join. In bytes too: what waits for one client is bounded,
# and a history is sent to it as one message.
HISTORY: Final = 100
HISTORY_BYTES: Final = 262_144
# Users that `room:users` names; the total is told always.
LISTED: Final = 1_000
# The last messages of a user that are known again when they are sent again.
REMEMBERED: Final = 200
# Notices of typing that a user may cause per second; each lasts for three.
KEYSTROKES: Final = 2.0

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=4 * NAME_LENGTH)]
RoomName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Content = Annotated[str, msgspec.Meta(min_length=1, max_length=CONTENT_LENGTH)]
# As session keys: a bearer secret.
Key = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9._-]{16,64}\Z")]
MessageId = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9._-]{8,64}\Z")]


# What clients send.


class Registration(msgspec.Struct):
    """`user:register`: who a client is. The key is what makes two tabs one user."""

    name: Name
    key: Key | None = None


class RoomRef(msgspec.Struct):
    """`room:join` and `room:leave`."""

    room: RoomName


class Draft(msgspec.Struct):
    """`chat:message`. With an id of its own it can be sent again and still arrives once."""

    room: RoomName
    content: Content
    id: MessageId | None = None


class Keystroke(msgspec.Struct):
    """`chat:typing`; `typing` is false when the user stopped."""

    room: RoomName
    typing: bool = True


# What clients get.


class User(msgspec.Struct, frozen=True):
    """A user as everybody sees it.

    `colour` is a number from 0 that nobody else here has, the same for everybody who looks.
    """

    id: str
    name: str
    colour: int = 0


class Message(msgspec.Struct, frozen=True):
    """A message as everybody in the room gets it, the sender too: `chat:message`."""

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
    """The answer to `room:join`: what was said before."""

    room: str
    messages: list[Message]


class RoomUsers(msgspec.Struct):
    """`room:users`, for who joins: who is there. `user:joined` and `user:left` follow."""

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
    """`user:typing`: takes it back with `typing` false, or by saying nothing for 3 seconds."""

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
    """A token bucket: so many at once, then so many per second."""

    __slots__ = ("_at", "_left", "burst", "rate")

    def __init__(self, burst: float, rate: float) -> None:
        self.burst: Final = burst
        self.rate: Final = rate
        self._left = burst
        # When `_left` was right; seconds of any steady clock.
        self._at = 0.0

    def take(self, now: float) -> float:
        """Take one and return 0, or return the seconds until there is one."""
        self._left = min(self.burst, self._left + (now - self._at) * self.rate)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self.rate
        self._left -= 1
        return 0.0


@dataclass(slots=True)
class Person:
    """A user that is here, in one tab or several."""

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
    """A room's people and the last of what they said."""

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
        # By the id of the socket that was cut; when it fires, the tab is gone.
        self._leaving: dict[str, asyncio.TimerHandle] = {}

    # Coming and going.

    async def connect(self, socket: Socket) -> None:
        """Take up a client that came back as itself, with its user and its rooms."""
        self._stop_leaving(socket.id)
        user = self._user_of(socket)
        if user is None or not socket.recovered:
            return
        person = self.people.get(user.id)
        if person is None and self._is_taken(user.name):
            # Somebody else has the name by now: the client is asked for another.
            socket.data.clear()
            await socket.leave(*(socket.rooms - {socket.id}))
            return
        is_late = person is None
        person = person or self._arrive(user.id, user.name)
        person.tabs.setdefault(socket.id, set())
        for room in self.rooms.keys() & socket.rooms:
            self._enter(person, socket, room)
            if is_late:
                # Somebody may have its colour by now.
                self._tell_users(socket, room)

    async def disconnect(self, socket: Socket, reason: str) -> None:
        """Leave at once when a client says goodbye; else wait whether it comes back."""
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
        """Say who this client is. A key that is known makes it another tab of that user."""
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
        # What concerns the user's other tabs too is sent to, or kept from, this room.
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
        """Leave a room; leaving one that was never joined is no error."""
        person = self._person(socket)
        self._room(ref.room)
        await socket.leave(ref.room)
        self._exit(person, socket.id, ref.room)
        return {"status": "left", "room": ref.room}

    # Talking.

    async def message(self, socket: Socket, draft: Draft) -> Receipt:
        """Send a message to a room. A second time with the same id, it is only acknowledged."""
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
        """Tell the others in the room that this user is typing, or no longer is."""
        person = self._person(socket)
        if keystroke.room not in person.tabs[socket.id]:
            return
        # What is too much says nothing new.
        if person.keystrokes.take(time.monotonic()) == 0:
            # Volatile: nobody wants to catch up on it.
            others = self._namespace.to(keystroke.room).except_(_own_room(person.user))
            others.volatile.emit(
                "user:typing", Typing(keystroke.room, person.user, keystroke.typing)
            )

    # The rules behind them.

    def _arrive(self, id: str, name: str) -> Person:
        user = User(id, name, self._free_colour(id))
        messages = Allowance(self._burst, self._rate)
        # A few times round all the rooms.
        moves = Allowance(4 * len(self.rooms) + self._burst, self._rate)
        person = Person(user, messages, moves, Allowance(self._burst, KEYSTROKES))
        self.people[user.id] = person
        self._names.add(_alike(name))
        return person

    def _free_colour(self, id: str) -> int:
        """Return a colour that nobody has who is here, or whose words are still to be read."""
        taken = {person.user.colour for person in self.people.values()}
        before: int | None = None
        for message in (each for room in self.rooms.values() for each in room.history):
            if message.user.id == id:
                before = message.user.colour
            else:
                taken.add(message.user.colour)
        # Whoever comes back looks as before.
        if before is not None and before not in taken:
            return before
        return next(colour for colour in itertools.count() if colour not in taken)

    def _enter(self, person: Person, socket: Socket, name: str) -> None:
        """Note that a tab is in a room; the others are told of the user's first."""
        is_first = not person.is_in(name)
        person.tabs[socket.id].add(name)
        if is_first:
            self.rooms[name].people[person.user.id] = person.user
            self._announce("user:joined", name, person.user)

    def _exit(self, person: Person, tab: str, name: str) -> None:
        """Note that a tab left a room; the others are told of the user's last."""
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
        """Forget a tab, and with its last tab the user."""
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
        """Return who a client said it is; the colour is that of the person."""
        # As plain data: what a session keeps has to survive a trip to wherever it is kept.
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

    `rooms` are names with their topics. A user whose connection was cut has left after `grace`
    seconds without coming back. Each may send `burst` messages at once, then `rate` per second.
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
    # Rooms that can be joined have names without a colon.
    return f"user:{user.id}"


def _public_id(key: str) -> str:
    """Return the id of whoever has this key: the same after a restart, and no way back."""
    return hashlib.blake2s(key.encode(), digest_size=8, person=b"chatuser").hexdigest()


# Those that turn the direction of what follows; emoji need the other invisible characters.
_TURNS: Final = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def _clean(name: str) -> str:
    """Return a name as it is shown. Raises InvalidMessage when nothing would be seen of it."""
    clean = " ".join(_TURNS.sub("", unicodedata.normalize("NFC", name)).split())
    if len(clean) > NAME_LENGTH:
        raise InvalidMessage(f"Expected a name of at most {NAME_LENGTH} characters", path="$.name")
    categories = {unicodedata.category(character) for character in clean}
    if "Cc" in categories or all(category[0] in "CMZ" for category in categories):
        raise InvalidMessage("Expected a name that can be read", path="$.name")
    return clean


def _alike(name: str) -> str:
    """Return what two names share that people would take for one."""
    return unicodedata.normalize("NFKC", name).casefold().replace("\u200d", "")


def _size(message: Message) -> int:
    """Return about how many bytes a message takes on the wire."""
    return len(message.content.encode()) + 4 * len(message.user.name) + 160


__all__ = ["ROOMS", "Chat", "install"]
