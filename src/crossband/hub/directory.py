"""The namespaces of a hub, by name and by pattern."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, overload
from weakref import WeakValueDictionary

from crossband.broker import Publication
from crossband.errors import EncodeError
from crossband.handlers.callables import check_callable
from crossband.handlers.events import Handler
from crossband.handlers.registry import Handlers, Registry
from crossband.hub.access import Access
from crossband.hub.namespace import Departing, Namespace
from crossband.hub.node import Node
from crossband.names import check_name

logger: Final = logging.getLogger("crossband")


class NamespacePattern(Handlers):
    """Handlers of all namespaces that match; each exists only while it has sockets."""

    def __init__(
        self, namespaces: Mapping[str, Namespace], matches: Callable[[str], bool], *, plain: bool
    ) -> None:
        self.registry: Final = Registry()
        super().__init__(self.registry)
        self._namespaces = namespaces
        self.matches = matches
        self.plain = plain

    def emit(self, event: str, *args: Any) -> None:
        """Publish an event in each of these namespaces that has sockets now."""
        for namespace in list(self._namespaces.values()):
            if namespace.registry is self.registry:
                namespace.emit(event, *args)


class Directory:
    """Finds namespaces, and creates those that a pattern matches."""

    def __init__(
        self,
        node: Node,
        access: Access,
        departures: Departing,
        reserved: Mapping[str, Handler],
    ) -> None:
        self._node = node
        self._access = access
        self._departures = departures
        # The hub's own handlers, by reserved event.
        self._reserved = reserved
        # Declared namespaces, and those of patterns while they have sockets.
        self.namespaces: dict[str, Namespace] = {}
        # Namespaces of patterns: clients choose the names, so none may outlive its clients.
        self._matched: WeakValueDictionary[str, Namespace] = WeakValueDictionary()
        self._patterns: list[NamespacePattern] = []

    def _make(self, name: str, *, plain: bool, registry: Registry | None = None) -> Namespace:
        return Namespace(
            self._node,
            self._access,
            self._departures,
            self._reserved,
            name,
            plain=plain,
            registry=registry,
        )

    @overload
    def of(self, name: str, *, plain: bool = False) -> Namespace: ...
    @overload
    def of(
        self, name: re.Pattern[str] | Callable[[str], bool], *, plain: bool = False
    ) -> NamespacePattern: ...
    def of(
        self, name: str | re.Pattern[str] | Callable[[str], bool], *, plain: bool = False
    ) -> Namespace | NamespacePattern:
        """Return a namespace by name, or declare all that a pattern or function matches.

        `plain` makes the raw WebSocket door speak bare text and binary frames there, as
        `message` events, and event streams carry text as it is. Raises EncodeError for an
        unusable name, TypeError for a function that is async or does not take the name.
        """
        if not isinstance(name, str):
            if isinstance(name, re.Pattern):
                matches = _full_match(name)
            elif callable(name):
                # An async function returns a coroutine, which is true for every name.
                check_callable(name, "of()", "name", plain=True)
                matches = name
            else:
                raise TypeError(
                    f"of() takes a name, a compiled pattern or a function, not {name!r}"
                )
            pattern = NamespacePattern(self.namespaces, matches, plain=plain)
            self._patterns.append(pattern)
            return pattern
        if not name.startswith("/"):
            name = "/" + name
        namespace = self.find(name)
        if namespace is None:
            name = check_name(name, "a namespace name")
            namespace = self.namespaces[name] = self._make(name, plain=plain)
        elif plain:
            namespace.plain = True
        return namespace

    def find(self, name: str) -> Namespace | None:
        """Return a declared namespace, or create it if a pattern matches, or None."""
        namespace = self._known(name)
        if namespace is not None or not self._patterns:
            return namespace
        try:
            check_name(name, "a namespace name")
        except EncodeError:
            return None
        for pattern in self._patterns:
            try:
                matches = pattern.matches(name)
            except Exception:
                logger.exception("a pattern of namespaces failed on %r", name)
                continue
            if matches:
                namespace = self._make(name, plain=pattern.plain, registry=pattern.registry)
                self._matched[name] = namespace
                return namespace
        return None

    def _known(self, name: str) -> Namespace | None:
        return self.namespaces.get(name) or self._matched.get(name)

    def attach(self, namespace: Namespace) -> Awaitable[None] | None:
        """Subscribe to a namespace's publications, before a client is admitted.

        The caller must call `settled` once the client is admitted or refused.
        """
        namespace.entering += 1
        return self._node.broker.attach(namespace.name)

    def settled(self, namespace: Namespace) -> None:
        """Note that a client was admitted or refused."""
        namespace.entering -= 1
        self.vacate(namespace)

    def enlist(self, namespace: Namespace) -> None:
        """Note that a namespace has a client; a pattern's may have been dropped."""
        self.namespaces[namespace.name] = namespace

    def vacate(self, namespace: Namespace) -> None:
        """Note that a client left a namespace; an empty one of a pattern is dropped."""
        if not namespace.sockets and self._matched.get(namespace.name) is namespace:
            self.namespaces.pop(namespace.name, None)
            if not namespace.entering:
                self._node.broker.detach(namespace.name)

    def expel(self, user: str) -> None:
        """End the presence of a user's clients that were cut: they may not come back."""
        for namespace in self.namespaces.values():
            if namespace.presences.active:
                namespace.presences.expel(user)

    def deliver(self, publication: Publication) -> None:
        """Pass a publication to its namespace, if it exists here."""
        namespace = self._known(publication.namespace)
        if namespace is not None:
            namespace.fanout.deliver(publication)

    def lost(self, namespace: str, sid: str | None = None) -> None:
        """Tell the clients of a namespace of a gap, or one: the broker has proof of loss."""
        known = self._known(namespace)
        if known is not None:
            known.fanout.tell_lost(sid)

    def taken(self, namespace: str, key: str, take: int) -> None:
        """End the client of a session that another node has taken."""
        known = self._known(namespace)
        live = None if known is None else known.clients.live(key)
        # It may have come back here since.
        if live is not None and live.record.take == take:
            self._departures.replace(live)


def _full_match(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda name: pattern.fullmatch(name) is not None
