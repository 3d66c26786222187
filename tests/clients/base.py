"""What the tests ask of any client, whatever its door.

One interface, so that a scenario is written once; the drivers beside this file implement it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

# Seconds any single wait may take: a guard against hanging, which no busy machine may reach. A
# healthy wait takes milliseconds.
WAIT = 30.0


@dataclass(frozen=True, slots=True)
class Event:
    """One event as a client saw it; `offset` is None on one that carries no cursor."""

    name: str
    data: Any
    offset: str | None = None


class Refused(Exception):
    """The server did not let the client in."""

    def __init__(self, reason: str, *, data: Any = None, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.data = data
        # The HTTP status, on the doors that refuse before an upgrade.
        self.status = status


class EventFailed(Exception):
    """The server answered an event with an error, as `{"code", "error", …}`."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(error["error"])
        self.error = dict(error)
        self.code: str = error["code"]


class Client(ABC):
    """One client in one namespace."""

    # The door, and for Socket.IO the library and its transports.
    kind: ClassVar[str]
    # Whether bytes arrive as bytes; the JSON doors carry base64.
    binary: ClassVar[bool] = False
    # Whether the client tells if its session was recovered.
    tells_recovered: ClassVar[bool] = True

    def __init__(self) -> None:
        self.url = ""
        self.namespace = "/"
        self.auth: dict[str, Any] = {}
        self.rooms: tuple[str, ...] = ()
        self.sid = ""
        # The secret a resume needs; None on a client that keeps it to itself.
        self.session: str | None = None
        # The cursor of the last event seen; None before the first.
        self.offset: str | None = None
        self.recovered = False
        # Takes name and data of every event instead of the log and the queues, when set.
        self.sink: Callable[[str, Any], None] | None = None
        # Every event in the order of arrival.
        self.log: list[Event] = []
        self.gaps: list[dict[str, Any]] = []
        # How the connection ended, as far as the client knows.
        self.farewell = ""
        # Set while there is no connection.
        self.gone = asyncio.Event()
        self._events: defaultdict[str, asyncio.Queue[Event]] = defaultdict(asyncio.Queue)
        self._errors: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answers: dict[str, Callable[[Any], Any]] = {}

    async def connect(
        self,
        url: str,
        namespace: str = "/",
        *,
        auth: Mapping[str, Any] | None = None,
        rooms: Sequence[str] = (),
        session: str | None = None,
        offset: str | None = None,
    ) -> None:
        """Connect, and wait for the server's welcome; raise `Refused` when there is none."""
        self.url, self.namespace = url, namespace
        self.auth, self.rooms = dict(auth or {}), tuple(rooms)
        self.session, self.offset = session, offset
        await self.resume()

    async def resume(self) -> None:
        """Come back after a cut, with the session and the cursor the client had."""
        self.gone.clear()
        try:
            async with asyncio.timeout(WAIT):
                await self._open()
        except BaseException:
            self.gone.set()
            raise

    def answer(self, event: str, handler: Callable[[Any], Any]) -> None:
        """Answer the server's acknowledgement requests for `event` with what `handler` returns.

        The raw clients take an async handler too, which may ask the server in between.
        """
        self._answers[event] = handler

    async def next_event(self, name: str) -> Event:
        """Return the next unread event of that name."""
        async with asyncio.timeout(WAIT):
            return await self._events[name].get()

    async def next_error(self) -> dict[str, Any]:
        """Return the next error the server sent for an event without acknowledgement."""
        async with asyncio.timeout(WAIT):
            return await self._errors.get()

    async def next_gap(self) -> dict[str, Any]:
        """Return the next notice of a gap, `{"reason", "offset"}`."""
        data = (await self.next_event("gap")).data
        assert isinstance(data, dict)
        return data

    def unread(self, name: str) -> int:
        """Count the events of that name nobody has asked for yet."""
        return self._events[name].qsize()

    def data_of(self, name: str) -> list[Any]:
        """List the data of every event of that name, in the order of arrival."""
        return [event.data for event in self.log if event.name == name]

    async def settled(self) -> None:
        """Wait until the connection uses the transport it will stay on."""
        return

    @abstractmethod
    async def emit(self, event: str, *data: Any) -> None:
        """Send an event of one value or none, and ask for no acknowledgement."""

    @abstractmethod
    async def call(self, event: str, *data: Any) -> Any:
        """Send an event and return its acknowledgement; raise `EventFailed` on an error."""

    @abstractmethod
    async def cut(self) -> None:
        """Reset the connection below HTTP: no close frame, no DISCONNECT."""

    @abstractmethod
    async def close(self) -> None:
        """Leave properly and free everything; safe to call twice."""

    @abstractmethod
    async def _open(self) -> None:
        """Connect with what `connect` stored; set sid, session, recovered."""

    def _receive(self, name: str, data: Any, offset: str | None) -> None:
        event = Event(name, data, offset)
        if offset is not None:
            self.offset = offset
        if name == "gap":
            # What was missed is missed: from here the client goes on.
            self.offset = data["offset"]
        if self.sink is not None:
            self.sink(name, data)
            return
        if name == "error":
            self._errors.put_nowait(data)
            return
        if name == "gap":
            self.gaps.append(data)
        self.log.append(event)
        self._events[name].put_nowait(event)

    def _receive_args(self, name: str, args: Sequence[Any]) -> None:
        """Take a Socket.IO event of one argument, with or without its trailing offset."""
        data = args[0] if args else None
        offset = args[1] if len(args) == 2 else None
        assert len(args) <= 2, f"{name}: one argument and the offset, got {args!r}"
        assert offset is None or isinstance(offset, str), f"{name}: {args!r}"
        self._receive(name, data, offset)


def envelope(event: str, data: Sequence[Any]) -> dict[str, Any]:
    """Return the envelope of an event of one value or none."""
    (value,) = data or (None,)
    return {"type": event, "data": value} if data else {"type": event}


def raise_failed(answer: Any) -> Any:
    """Return a Socket.IO acknowledgement, or raise the error it holds."""
    if isinstance(answer, dict) and {"code", "error"} <= answer.keys():
        raise EventFailed(answer)
    return answer
