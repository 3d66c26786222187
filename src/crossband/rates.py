"""How fast clients may send: when one is let through, held back, or refused. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final
from weakref import WeakValueDictionary

# Seconds of tolerance, so that rounding refuses no client that waited as long as it was told.
_ROUNDING: Final = 1e-9
# Seconds a message may be ahead of its rate: the client is paused for that long. A message that
# would have to wait longer is refused, so that the client is told why nothing happens.
LONGEST_PAUSE: Final = 2.0
# Seconds a pause lasts at least: a connection is paused at most twenty times a second.
SHORTEST_PAUSE: Final = 0.05


class TokenBucket:
    """Allows `rate` messages a second in the long run, and `burst` of them at once.

    A bucket is one number: the time at which it will be full (the generic cell rate
    algorithm, ITU-T I.371). It needs no refilling between calls.
    """

    __slots__ = ("__weakref__", "_full", "_period", "_slack")

    def __init__(self, rate: float, burst: int) -> None:
        # Seconds per message.
        self._period = 1 / rate
        # There is a token while the bucket will be full within this many seconds.
        self._slack = (burst - 1) / rate
        # When the bucket will be full; it is full if that is now or in the past.
        self._full = float("-inf")

    def take(self, now: float) -> float:
        """Take a token and return 0, or return the seconds until one is there.

        Hot: once per message. 0.1 µs on CPython 3.11.
        """
        full = self._full
        if full <= now:
            self._full = now + self._period
            return 0.0
        wait = full - now - self._slack
        if wait > _ROUNDING:
            return wait
        self._full = full + self._period
        return 0.0

    def owe(self, now: float) -> float:
        """Take a token that may not be there yet; return the seconds until it is."""
        full = max(self._full, now)
        self._full = full + self._period
        return max(0.0, full - now - self._slack)

    def charge(self, now: float, count: int) -> None:
        """Take tokens that were used elsewhere, whether or not they are there."""
        self._full = max(self._full, now) + count * self._period

    def full(self, now: float) -> bool:
        """Return whether every token that was taken has been replaced."""
        return self._full <= now


class Meter:
    """Limits what one connection sends, by its own buckets and its user's shared one.

    It allows `rate` messages a second and `burst` at once, `byte_rate` bytes a second and
    `byte_burst` at once; a rate of 0 means no limit. A message over the rates may be lent: the
    caller then pauses the client until it is within them again. A client that borrows for
    `flood_time` seconds, never pausing for `quiet` seconds, is flooding and gets no more.
    `refused` counts refusals, so that the caller can close a client that ignores them.
    """

    __slots__ = (
        "_byte_burst",
        "_byte_full",
        "_byte_period",
        "_byte_slack",
        "_flood_time",
        "_full",
        "_late_since",
        "_period",
        "_quiet",
        "_quiet_at",
        "_slack",
        "refused",
        "shared",
    )

    def __init__(
        self,
        rate: float,
        burst: int,
        *,
        byte_rate: float = 0.0,
        byte_burst: int = 0,
        quiet: float,
        flood_time: float = 30.0,
    ) -> None:
        # Two buckets like TokenBucket: seconds per message, how far ahead the time at which it
        # is full may lie once the message is taken, and that time; then the same for bytes.
        self._period = 1 / rate if rate else 0.0
        self._slack = (burst / rate if rate else 0.0) + _ROUNDING
        self._full = float("-inf")
        self._byte_period = 1 / byte_rate if byte_rate else 0.0
        self._byte_slack = (byte_burst / byte_rate if byte_rate else 0.0) + _ROUNDING
        self._byte_burst = byte_burst
        self._byte_full = float("-inf")
        # Shared with the other connections of its user; None without a user or a limit.
        self.shared: TokenBucket | None = None
        # Messages refused since the last pause of `quiet` seconds.
        self.refused: int = 0
        self._quiet = quiet
        self._quiet_at = float("-inf")
        # When it was first too fast since then.
        self._late_since = float("-inf")
        self._flood_time = flood_time

    def take(self, now: float, size: int = 0) -> float:
        """Take a message of `size` bytes; return 0, or the seconds to wait before a retry.

        Hot: once per message. 0.1 µs on CPython 3.11; a call to each bucket would take 0.2.
        """
        full = self._full
        if full < now:
            full = now
        full += self._period
        byte_full = self._byte_full
        if byte_full < now:
            byte_full = now
        byte_full += size * self._byte_period
        if full - now > self._slack or byte_full - now > self._byte_slack:
            wait = max(full - now - self._slack, byte_full - now - self._byte_slack)
            return self._refuse(now, wait + _ROUNDING)
        if self.shared is not None and (wait := self.shared.take(now)):
            return self._refuse(now, wait)
        self._full = full
        self._byte_full = byte_full
        return 0.0

    def take_bytes(self, now: float, size: int) -> float:
        """Take the bytes of a message that was counted earlier; returns as `take`."""
        full = max(self._byte_full, now) + size * self._byte_period
        wait = full - now - self._byte_slack
        if wait > 0:
            return self._refuse(now, wait + _ROUNDING)
        self._byte_full = full
        return 0.0

    def lend(self, now: float, wait: float, *, size: int = 0, messages: int = 1) -> float:
        """Take a message after all that was just refused for `wait` seconds.

        Returns for how many seconds to take nothing more, or 0 if it stays refused.
        """
        # A message larger than the burst passes whenever the bucket is full.
        excess = max(0, size - self._byte_burst) * self._byte_period
        if wait - excess > LONGEST_PAUSE or now - self._late_since > self._flood_time:
            return 0.0
        self.refused -= 1
        if self.shared is not None and messages:
            self.shared.owe(now)
        self._full = max(self._full, now) + messages * self._period
        self._byte_full = max(self._byte_full, now) + size * self._byte_period
        pause = min(max(wait, SHORTEST_PAUSE), LONGEST_PAUSE)
        self._quiet_at = now + pause + self._quiet
        return pause

    def _refuse(self, now: float, wait: float) -> float:
        if now >= self._quiet_at:
            self.refused = 0
            self._late_since = now
        self._quiet_at = now + self._quiet
        self.refused += 1
        return wait


class Buckets:
    """One bucket per key, kept until it is full and nothing else refers to it.

    A client that disconnects and comes back finds its bucket as it left it.
    """

    __slots__ = ("_burst", "_by_key", "_prune_at", "_rate")

    # Full buckets are pruned whenever the number of buckets has doubled since the last time.
    _FEWEST = 1_024

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._by_key: dict[Hashable, TokenBucket] = {}
        self._prune_at = self._FEWEST

    def __len__(self) -> int:
        return len(self._by_key)

    def of(self, key: Hashable, now: float) -> TokenBucket:
        """Return a key's bucket."""
        bucket = self._by_key.get(key)
        if bucket is None:
            if len(self._by_key) >= self._prune_at:
                self._prune(now)
            bucket = self._by_key[key] = self._make(key)
        return bucket

    def _make(self, key: Hashable) -> TokenBucket:
        return TokenBucket(self._rate, self._burst)

    def _prune(self, now: float) -> None:
        # A full bucket is as good as a new one, except to the meters that share it: those that
        # something else keeps alive stay.
        full = WeakValueDictionary(
            {key: each for key, each in self._by_key.items() if each.full(now)}
        )
        self._by_key = {key: each for key, each in self._by_key.items() if not each.full(now)}
        self._by_key.update(full)
        self._prune_at = max(self._FEWEST, 2 * len(self._by_key))


class CountedBucket(TokenBucket):
    """A bucket that counts what was taken from it, for other nodes."""

    __slots__ = ("_key", "_used", "taken")

    def __init__(
        self, rate: float, burst: int, key: Hashable, used: dict[Hashable, CountedBucket]
    ) -> None:
        super().__init__(rate, burst)
        self.taken: int = 0
        self._key = key
        # The buckets of which something was taken, by key: shared by all.
        self._used = used

    def take(self, now: float) -> float:
        wait = TokenBucket.take(self, now)
        if not wait:
            self._count()
        return wait

    def owe(self, now: float) -> float:
        self._count()
        return TokenBucket.owe(self, now)

    def _count(self) -> None:
        if not self.taken:
            self._used[self._key] = self
        self.taken += 1


class SharedBuckets(Buckets):
    """Buckets that every node has for itself, charged with what the other nodes tell.

    A node tells only of keys that took more than the share of one node: if none does, all of
    them together are within the rate. So whatever nodes do not tell of adds less than the rate
    once, and most keys are never told of.
    """

    __slots__ = ("_used",)

    def __init__(self, rate: float, burst: int) -> None:
        super().__init__(rate, burst)
        self._used: dict[Hashable, CountedBucket] = {}

    def _make(self, key: Hashable) -> TokenBucket:
        return CountedBucket(self._rate, self._burst, key, self._used)

    def collect(self, seconds: float, nodes: int) -> dict[Hashable, int]:
        """Return what was taken in the last seconds, by keys above their share of a node."""
        share = self._rate * seconds / nodes
        used = {key: bucket.taken for key, bucket in self._used.items()}
        for bucket in self._used.values():
            bucket.taken = 0
        self._used.clear()
        return {key: taken for key, taken in used.items() if taken > share}
