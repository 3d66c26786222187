"""The call of the append script: what a node and a publisher without a hub say alike."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Final

from crossband.broker import Publication
from crossband.broker.bus import MAX_MESSAGE
from crossband.broker.redis.frames import encode_entry
from crossband.broker.redis.link import Arg
from crossband.errors import EncodeError

# Seconds for which a log remembers a sender's last call once it may not be repeated any more.
REMEMBERED: Final = 30.0
# The most seconds for which a call may be repeated.
LONGEST: Final = 86_400.0
# Bytes of one publication. Redis cuts a subscriber that is 32 MiB behind.
MAX_PUBLICATION: Final = MAX_MESSAGE


def encode_publication(publication: Publication, *, recorded: bool) -> bytes:
    """Return a publication's bytes. Raises EncodeError if it is too large to be carried."""
    data = encode_entry(publication, recorded=recorded)
    if len(data) > MAX_PUBLICATION:
        raise EncodeError(
            f"the event {publication.event!r} has {len(data)} bytes: between nodes, at most "
            f"{MAX_PUBLICATION} are carried"
        )
    return data


def new_log_id() -> str:
    """Return an id for a log that does not exist yet: of 76 bits, as few are ever used."""
    # Each batch brings one. It is no secret, and this costs no system call.
    return f"{random.getrandbits(76):019x}"


def append_call(
    base: str,
    bounds: tuple[int, int, int, int],
    sender: str,
    number: int,
    items: Iterable[tuple[Publication, bool, bytes]],
    *,
    verb: str,
    new: int,
    patience: float,
    skew: int = 0,
) -> tuple[list[str], list[Arg]]:
    """Return the keys and arguments that append publications to a namespace's log.

    `base` is what its keys begin with; `bounds` are the age in ms, the number of publications,
    and the bytes of all and of those for one socket. A sender's `number` grows with each call; a
    call that is sent again with the same number within `patience` seconds is answered as before.
    `new` is 1 for the first one of a connection. `items` are publications, whether they are
    recorded, and their bytes.
    """
    keys = [f"{base}meta", f"{base}log", f"{base}sent:{sender}"]
    remembered = int(1_000 * (min(patience, LONGEST) + REMEMBERED))
    args: list[Arg] = [base, skew, new_log_id(), *bounds, verb, base, sender, number, new]
    args.append(remembered)
    for publication, recorded, data in items:
        private = recorded and publication.private
        args.append(publication.size if recorded else -1)
        args.append(" ".join(publication.rooms) if private else "")
        args.append(data)
        if private:
            for sid in publication.rooms:
                keys += [f"{base}sid:{sid}", f"{base}own:{sid}"]
    return keys, args
