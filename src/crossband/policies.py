"""What may be dropped for a client that is behind, and which of it goes first."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Literal, NamedTuple, TypeVar

from crossband.errors import EncodeError

Dropping = Literal["drop_oldest", "latest"]
# What tells apart the things an event is about.
Key = str | int | None
# Finds it in the payload. One for each number of arguments, or a lambda's would have no types.
KeyFunction = (
    Callable[[Any], Key]
    | Callable[[Any, Any], Key]
    | Callable[[Any, Any, Any], Key]
    | Callable[[Any, Any, Any, Any], Key]
)

T = TypeVar("T")


class Policy:
    """What was declared for the events of one name."""

    __slots__ = ("_event", "_key", "dropping")

    def __init__(self, event: str, policy: str, key: KeyFunction | None) -> None:
        """Raises ValueError for a policy there is not, TypeError for a key of no use."""
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
        # None: nothing is dropped, the client is disconnected.
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
    """On a message that may be dropped once a newer one with the same `of` waits too."""

    of: Hashable
    # The newest makes all before it worthless; else they are dropped only where room is short.
    latest: bool


def shed(
    items: Iterable[T], tag: Callable[[T], Tag | None], size: Callable[[T], int], excess: int
) -> tuple[list[T], int]:
    """Return what is left of a queue, oldest first, and the sum of the sizes that went.

    Of `latest`, only the newest is left. Of the others the oldest go, until `excess` is
    made up for; never the newest.
    """
    left: list[T] = []
    newest: set[Hashable] = set()
    # Places in `left` of what may go.
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
