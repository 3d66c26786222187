"""Counts open connections: in all, per address and per user. Pure: no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Any

from crossband.errors import CloseCode, ConnectionRefused


class TooManyConnections(ConnectionRefused):
    """The server, an address or a user already has as many connections as it may.

    `scope` names which of the three; `max` is its limit.
    """

    def __init__(self, scope: str, most: int) -> None:
        # Too many of its own is the client's fault (429), a full server is not (503).
        super().__init__(code="too_many_connections", status=503 if scope == "server" else 429)
        self.scope = scope
        self.details: dict[str, Any] = {"scope": scope, "max": most}

    @property
    def close_code(self) -> CloseCode:
        """The code a WebSocket is closed with: a full server may soon have room again."""
        full = self.scope == "server"
        return CloseCode.TRY_AGAIN_LATER if full else CloseCode.POLICY_VIOLATION


class Slots:
    """The slots that are taken; a limit of 0 means any number."""

    __slots__ = ("_addresses", "_per_address", "_per_user", "_total", "_users", "taken")

    def __init__(self, *, total: int = 0, per_address: int = 0, per_user: int = 0) -> None:
        self._total = total
        self._per_address = per_address
        self._per_user = per_user
        self.taken: int = 0
        # Only holders of at least one slot have an entry.
        self._addresses: Counter[Hashable] = Counter()
        self._users: Counter[Hashable] = Counter()

    @property
    def addresses(self) -> int:
        """The number of addresses that hold a slot."""
        return len(self._addresses)

    def take(self, address: Hashable | None) -> Slot:
        """Take a slot for a connection from an address. Raises TooManyConnections.

        None means that the address is unknown, as over a unix socket: only the total counts.
        """
        if self._total and self.taken >= self._total:
            raise TooManyConnections("server", self._total)
        if self._per_address and address is not None:
            if self._addresses[address] >= self._per_address:
                raise TooManyConnections("address", self._per_address)
            self._addresses[address] += 1
        else:
            address = None
        self.taken += 1
        return Slot(self, address)

    def held_by(self, user: Hashable) -> int:
        """Return how many connections are counted for a user."""
        return self._users.get(user, 0)

    def _give_user(self, user: Hashable, leaving: int) -> None:
        if self._users[user] - leaving >= self._per_user:
            raise TooManyConnections("user", self._per_user)
        self._users[user] += 1

    def _give_back(self, address: Hashable | None, users: list[Hashable]) -> None:
        self.taken -= 1
        if address is not None:
            _subtract(self._addresses, address)
        for user in users:
            _subtract(self._users, user)


class Slot:
    """One connection's slot, released once."""

    __slots__ = ("_address", "_slots", "_users")

    def __init__(self, slots: Slots, address: Hashable | None) -> None:
        # None once given back.
        self._slots: Slots | None = slots
        self._address = address
        # A Socket.IO connection can have several users, one per namespace.
        self._users: list[Hashable] = []

    def identify(self, user: Hashable, *, leaving: int = 0) -> bool:
        """Also count the connection for a user; return whether it was not yet.

        This connection is about to replace `leaving` of the user's others. Raises
        TooManyConnections.
        """
        slots = self._slots
        if slots is None or not slots._per_user or user in self._users:
            return False
        slots._give_user(user, leaving)
        self._users.append(user)
        return True

    def forget(self, user: Hashable) -> None:
        """Stop counting the connection for a user."""
        if self._slots is not None and user in self._users:
            self._users.remove(user)
            _subtract(self._slots._users, user)

    def release(self) -> None:
        """Give the slot back; does nothing the second time."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots._give_back(self._address, self._users)


def _subtract(counter: Counter[Hashable], key: Hashable) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
