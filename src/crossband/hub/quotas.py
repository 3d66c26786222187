"""Limits on what a client, a user or a publisher may do: connections and rates."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Final

from crossband.addresses import network_of
from crossband.connection import Connection
from crossband.errors import RateLimited
from crossband.hub.messages import CountUser, Used, encode
from crossband.hub.node import Node
from crossband.hub.others import COUNT_TIME, ask
from crossband.rates import Buckets, Meter, SharedBuckets
from crossband.slots import Slots, TooManyConnections

logger: Final = logging.getLogger("crossband")

# Seconds between two log lines about refused connections.
REFUSAL_LOG_TIME: Final = 10.0
# Users in one message between nodes: 0.3 MB at most, by the length of a name.
MOST_USERS: Final = 1_000


class Quotas:
    """Counts the connections of a hub, and the rates that several of them share."""

    def __init__(self, node: Node) -> None:
        self._node = node
        # Replaced when the hub starts.
        self.slots: Slots = Slots()
        self._user_rates: Buckets | None = None
        # The same if other nodes have to know of them. None on a broker inside this process.
        self._shared_rates: SharedBuckets | None = None
        # When other nodes were last told.
        self._told_at = 0.0
        self._publish_rates: Buckets | None = None
        # When a refused connection was last logged.
        self._refusal_noted = -math.inf

    def start(self) -> None:
        limits = self._node.settings.limits
        self.slots = Slots(
            total=limits.connections,
            per_address=limits.connections_per_address,
            per_user=limits.connections_per_user,
        )
        rate = limits.user_message_rate
        self._user_rates = self._buckets(rate)
        self._shared_rates = None
        if rate and not self._node.publishes_at_once:
            self._user_rates = self._shared_rates = SharedBuckets(rate, self._burst(rate))
            self._told_at = time.monotonic()
        self._publish_rates = self._buckets(limits.publish_rate)

    def _burst(self, rate: float) -> int:
        return max(1, round(rate * self._node.settings.limits.burst_time))

    def _buckets(self, rate: float) -> Buckets | None:
        return Buckets(rate, self._burst(rate)) if rate else None

    def take_slot(self, connection: Connection, address: str | None) -> None:
        """Count a connection, and meter it from here on. Raises TooManyConnections.

        Call this before anything else is done for it, and `free_slot` at its end.
        """
        limits = self._node.settings.limits
        try:
            connection.slot = self.slots.take(None if address is None else network_of(address))
        except TooManyConnections as error:
            self._node.traffic.refused_request(error.code)
            self._note_refusal(error, address)
            raise
        rate, byte_rate = limits.message_rate, limits.byte_rate
        if rate or byte_rate or self._user_rates is not None:
            connection.meter = Meter(
                rate,
                self._burst(rate),
                byte_rate=byte_rate,
                # At least this, or the largest message could never be sent.
                byte_burst=max(self._burst(byte_rate), limits.largest_message),
                quiet=limits.burst_time,
                flood_time=limits.flood_time,
            )

    def _note_refusal(self, error: TooManyConnections, address: str | None) -> None:
        # Not every time: a refused client may try again at once, forever.
        now = time.monotonic()
        if now >= self._refusal_noted + REFUSAL_LOG_TIME:
            self._refusal_noted = now
            logger.warning(
                "too many connections (limit of one %s: %d), the last from %s",
                error.scope,
                error.details["max"],
                address,
            )

    def count_user(self, connection: Connection, user: str, *, replaces: bool) -> bool:
        """Also count a connection for its user; return whether it is newly counted.

        If it `replaces` another of the user's, which is about to be closed, that one does not
        count. Raises TooManyConnections.
        """
        slot = connection.slot
        counted = slot is not None and slot.identify(user, leaving=int(replaces))
        if connection.meter is not None and self._user_rates is not None:
            connection.meter.shared = self._user_rates.of(user, time.monotonic())
        return counted

    def count_of(self, user: str) -> int:
        """Return how many connections of this node are counted for a user."""
        return self.slots.held_by(user)

    async def count_elsewhere(
        self, connection: Connection, user: str, namespace: str, key: str | None
    ) -> None:
        """Raise TooManyConnections if a user has too many connections on all nodes.

        The new one is already counted here: if two come at the same time on two nodes, both may
        be refused, but not too many are admitted. A node that does not answer is not counted.
        """
        limit = self._node.settings.limits.connections_per_user
        bus = self._node.bus
        if not limit or not bus.members or connection.slot is None:
            return
        question = CountUser(user, namespace, key or "")
        given, _ = await ask(bus, question, int, timeout=COUNT_TIME)
        elsewhere = sum(number for _, number in given)
        if elsewhere + self.count_of(user) > limit:
            connection.slot.forget(user)
            raise TooManyConnections("user", limit)

    def count_message(self, user: str) -> None:
        """Count a user's message that no connection counts. Raises RateLimited."""
        if self._user_rates is not None:
            _take(self._user_rates, user)

    def tell_used(self) -> None:
        """Tell the other nodes which users sent more here than their share of one node."""
        buckets, members = self._shared_rates, self._node.bus.members
        if buckets is None:
            return
        now = time.monotonic()
        used = buckets.collect(now - self._told_at, len(members) + 1)
        self._told_at = now
        if members:
            users = [(str(user), count) for user, count in used.items()]
            for first in range(0, len(users), MOST_USERS):
                self._node.bus.tell(encode(Used(dict(users[first : first + MOST_USERS]))))

    def charge(self, users: Mapping[str, int]) -> None:
        """Count what users sent to another node."""
        now = time.monotonic()
        if self._user_rates is not None:
            for user, count in users.items():
                self._user_rates.of(user, now).charge(now, count)

    def floods(self, connection: Connection) -> bool:
        """Return whether a client keeps sending in spite of refusals."""
        meter = connection.meter
        return meter is not None and meter.refused >= self._node.settings.limits.refusals

    def count_control(self, connection: Connection, size: int = 0) -> bool:
        """Count a message that is not an event, such as a ping; return if it is allowed."""
        meter = connection.meter
        if meter is None or not (wait := meter.take(time.monotonic(), size)):
            return True
        return connection.borrow(wait, size)

    def count_publish(self, publisher: str) -> None:
        """Count a request to publish over HTTP. Raises RateLimited."""
        if self._publish_rates is not None:
            _take(self._publish_rates, publisher)


def _take(buckets: Buckets, key: str) -> None:
    now = time.monotonic()
    wait = buckets.of(key, now).take(now)
    if wait:
        raise RateLimited(wait)
