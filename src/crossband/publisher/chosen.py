"""Who gets what a publisher sends: the same words as on a hub."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from crossband.broker import Publication
from crossband.hub.messages import Choice, ServerEvent
from crossband.names import check_event, check_name
from crossband.protocol import payload


@dataclass(frozen=True, slots=True)
class Chosen:
    """Some recipients within one namespace."""

    namespace: str = "/"
    # Empty means everybody.
    rooms: tuple[str, ...] = ()
    except_: tuple[str, ...] = ()
    recorded: bool = True

    @property
    def choice(self) -> Choice:
        """The recipients, for the nodes."""
        return Choice(self.namespace, self.rooms, self.except_)

    def publication(self, event: str, args: Sequence[Any]) -> Publication:
        """Return an event for them. Raises EncodeError."""
        name = check_event(event)
        return Publication(self.namespace, name, payload.encode(args), self.rooms, self.except_)

    def server_event(self, event: str, args: Sequence[Any]) -> ServerEvent:
        """Return an event for the servers. Raises EncodeError; ValueError if rooms are chosen."""
        if self.rooms or self.except_:
            raise ValueError("server_emit() goes to all servers of a namespace: choose no rooms")
        return ServerEvent(self.namespace, check_name(event, "an event name"), payload.encode(args))


# What a choice is: Recipients or AsyncRecipients.
Recipients = TypeVar("Recipients")


class Choosing(ABC, Generic[Recipients]):
    """Chooses recipients; each step returns new ones."""

    __slots__ = ("_chosen",)

    def __init__(self, chosen: Chosen) -> None:
        self._chosen = chosen

    @abstractmethod
    def _with(self, chosen: Chosen) -> Recipients: ...

    def to(self, *rooms: str) -> Recipients:
        """Choose the clients in any of these rooms (a socket's id is a room).

        Raises ValueError without rooms: an empty list must not mean everybody.
        """
        if not rooms:
            raise ValueError("to() needs at least one room; emit() alone reaches everybody")
        return self._with(replace(self._chosen, rooms=_more(self._chosen.rooms, rooms)))

    in_ = to

    def except_(self, *rooms: str) -> Recipients:
        """Leave out the clients in any of these rooms (a socket's id is a room)."""
        return self._with(replace(self._chosen, except_=_more(self._chosen.except_, rooms)))

    @property
    def volatile(self) -> Recipients:
        """Do not record the event, and drop it for clients that are behind."""
        return self._with(replace(self._chosen, recorded=False))


def _more(before: Sequence[str], rooms: Sequence[str]) -> tuple[str, ...]:
    names = [check_name(room, "a room name") for room in rooms]
    return tuple(dict.fromkeys((*before, *names)))


def check_namespace(name: object) -> str:
    """Return a namespace's name, which may lack its slash. Raises EncodeError, TypeError."""
    if not isinstance(name, str):
        raise TypeError(f"of() takes the name of a namespace, not {name!r}")
    return check_name(name if name.startswith("/") else "/" + name, "a namespace name")
