"""Which events may be dropped for a client that is behind, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Literal, NamedTuple, TypeVar

from crossband.errors import EncodeError

Dropping = Literal["drop_oldest", "latest"]
# Tells apart the things that events of one name are about.
Key = str | int | None
# Finds the key in the payload. One type per number of arguments, or a lambda's would be untyped.
KeyFunction = (
    Callable[[Any], Key]
    | Callable[[Any, Any], Key]
    | Callable[[Any, Any, Any], Key]
    | Callable[[Any, Any, Any, Any], Key]
)

T = TypeVar("T")


class Policy:
    """The policy declared for events of one name."""

    __slots__ = ("_event", "_key", "dropping")

    def __init__(self, event: str, policy: str, key: KeyFunction | None) -> None:
        """Raise ValueError for an unknown policy, TypeError for an unusable key."""
        if policy not in ("disconnect", "drop_oldest", "latest"):
            raise ValueError(
                f"no policy {policy!r} for {event!r}: "
                "expected 'disconnect', 'drop_oldest' or 'latest'"
            )
        if key is not None and policy != "latest":
            raise ValueError(f"a key goes with the policy 'latest' only, not with {policy!r}")
        if key is not None and not callable(key):
            raise TypeError(f"the key of {event!r} must be a function, not {type(key).__name__}")
        self._event = event
        self._key: Callable[..., Key] | None = key
        # None: no event is dropped; the client is disconnected.
        self.dropping: Dropping | None = None
        if policy == "latest":
            self.dropping = "latest"
        elif policy == "drop_oldest":
            self.dropping = "drop_oldest"

    def key(self, args: Iterable[Any]) -> Key:
        """Return the key of an event with these arguments. Raises EncodeError."""
        if self._key is None:
            return None
        try:
            key = self._key(*args)
        except Exception as error:
            raise EncodeError(f"the key function of {self._event!r} failed: {error!r}") from error
        if key is not None and not isinstance(key, (str, int)):
            raise EncodeError(
                f"the key of {self._event!r} must be a string or an integer, "
                f"not {type(key).__name__}"
            )
        return key


class Tag(NamedTuple):
    """Marks a message droppable once a newer one with the same `of` is queued."""

    of: Hashable
    # True: a newer one replaces all before it. False: older ones go only when room is short.
    latest: bool


def shed(
    items: Iterable[T], tag: Callable[[T], Tag | None], size: Callable[[T], int], excess: int
) -> tuple[list[T], int]:
    """Return what remains of a queue, oldest first, and the total size dropped.

    Of messages tagged `latest`, only the newest remains. Of the other tagged ones the oldest
    are dropped until `excess` is freed, but never the newest.
    """
    left: list[T] = []
    newest: set[Hashable] = set()
    # Indexes in `left` of messages that may be dropped.
    spares: set[int] = set()
    freed = 0
    for item in reversed(list(items)):
        tagged = tag(item)
        if tagged is not None:
            if tagged.of not in newest:
                newest.add(tagged.of)
            elif tagged.latest:
                freed += size(item)
                continue
            else:
                spares.add(len(left))
        left.append(item)
    kept: list[T] = []
    for place in range(len(left) - 1, -1, -1):
        if freed < excess and place in spares:
            freed += size(left[place])
        else:
            kept.append(left[place])
    return kept, freed
