"""What publishers send: each step is one script, with what it needs. Does no I/O."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from crossband.broker import Publication
from crossband.broker.bus import Frame
from crossband.broker.redis.appends import append_call, encode_publication
from crossband.broker.redis.base import Bounds
from crossband.broker.redis.keys import Keys, check_version
from crossband.broker.redis.link import Arg
from crossband.broker.redis.scripts import APPEND, PUBLISH, REVOKE, Script
from crossband.broker.sessions import MAX_REVOKED
from crossband.hub.messages import Message, Revoked, encode_fitting
from crossband.names import new_id
from crossband.settings import Settings

# Seconds for which what the hub says of its history is believed.
FRESH: Final = 60.0

_encode: Final = msgspec.msgpack.Encoder().encode
_settings: Final = Settings()
# A hub's bounds, unless it has said otherwise.
_DEFAULT: Final = Bounds.of(_settings.history_size, _settings.history_bytes, _settings.history_age)


@dataclass(frozen=True, slots=True)
class Step:
    """A script to run."""

    script: Script
    keys: Sequence[str]
    args: Sequence[Arg]
    # It may be run again if its reply was lost.
    again: bool = True


class Lane:
    """A sender of the log, which appends one thing after another.

    A log remembers the number of each sender's last call, and answers it again if it comes a
    second time. So a retry publishes nothing twice, whatever happened to the first attempt.
    """

    __slots__ = ("new", "number", "sender")

    def __init__(self) -> None:
        self.sender: Final = new_id()
        self.number: int = 0
        # 1 until a call has come back: its connection may be a new one.
        self.new: int = 1


class Steps:
    """Makes the steps of one publisher, in one process.

    A forked process needs its own: two that count alike would be taken for one that repeats
    itself. Threads share it: each call has a lane for itself.
    """

    def __init__(self, prefix: str, verb: str, patience: float) -> None:
        self._prefix = prefix
        self._keys = Keys(prefix)
        # PUBLISH, or SPUBLISH in a cluster.
        self._verb = verb
        # Seconds within which a step may be run again.
        self._patience = patience
        # By which nodes know who sent a message.
        self._id = new_id()
        # Those that nobody uses now; there are as many as were ever used at once.
        self._lanes: deque[Lane] = deque()
        self._bounds = _DEFAULT
        # When the bounds were read. -inf before that.
        self._read_at = float("-inf")

    # What the hub says.

    @property
    def due(self) -> bool:
        """Whether `look` is due."""
        return time.monotonic() - self._read_at > FRESH

    @property
    def look(self) -> tuple[str, ...]:
        """The command that reads what the hub says of itself."""
        return ("MGET", self._keys.version, self._keys.bounds)

    def looked(self, reply: Sequence[bytes | None]) -> None:
        """Take its reply. Raises BrokerUnavailable for keys that are not this version's."""
        version, bounds = reply
        if version is not None:
            check_version(version, self._prefix)
        if bounds is not None:
            age, size, limit, own = map(int, bounds.split())
            self._bounds = Bounds(size, limit, own, age / 1_000)
        self._read_at = time.monotonic()

    # Steps.

    @contextlib.contextmanager
    def append(self, publication: Publication, *, recorded: bool) -> Iterator[Step]:
        """Append a publication to its log, while the body runs."""
        data = encode_publication(publication, recorded=recorded)
        lane = self._lanes.pop() if self._lanes else Lane()
        lane.number += 1
        bounds = self._bounds
        keys, args = append_call(
            self._keys.base(publication.namespace),
            (bounds.age_ms, bounds.size, bounds.limit, bounds.own),
            lane.sender,
            lane.number,
            [(publication, recorded, data)],
            verb=self._verb,
            new=lane.new,
            patience=self._patience,
        )
        lane.new = 1
        try:
            yield Step(APPEND, keys, args)
            lane.new = 0
        finally:
            self._lanes.append(lane)

    def tell(self, message: Message, *, again: bool = True) -> Step:
        """Send all nodes a message. Raises EncodeError if it is too large."""
        frame = _encode(Frame("tell", self._id, 0, encode_fitting(message)))
        return Step(PUBLISH, [self._keys.hall], [self._verb, frame], again)

    def revoke(self, user: str, now: float) -> tuple[Step, Step]:
        """Store a revocation; then tell the nodes of it."""
        name = user.encode("utf-8", "surrogatepass")
        keys = [self._keys.revoked, self._keys.revoked_order]
        return (
            Step(REVOKE, keys, [name, repr(now), MAX_REVOKED]),
            self.tell(Revoked(user, now)),
        )


def cursor_of(reply: Sequence[Any], *, recorded: bool) -> str | None:
    """Return the cursor of what was appended."""
    if not recorded:
        return None
    log, generation, before = reply
    return f"{log.decode()}.{int(generation)}-{int(before) + 1}"
