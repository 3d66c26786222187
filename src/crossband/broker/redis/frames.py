"""What goes over the wire: publications as msgpack, in frames as the append script makes them."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from crossband.broker import Publication
from crossband.protocol.payload import Payload


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A publication without its place."""

    recorded: bool
    rooms: tuple[str, ...]
    except_: tuple[str, ...]
    event: str
    json: bytes
    attachments: tuple[bytes, ...] = ()
    policy: Literal["drop_oldest", "latest"] | None = None
    key: str | int | None = None

    def publication(self, namespace: str) -> Publication:
        """Return it as a publication that has no place yet."""
        return Publication(
            namespace,
            self.event,
            Payload(self.json, self.attachments),
            self.rooms,
            self.except_,
            None,
            self.policy,
            self.key,
        )


class Frame(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What was appended in one step. Without a node, it tells of a loss."""

    log: str
    generation: int
    # The number before the first that is recorded.
    before: int
    # Milliseconds since 1970, by the server's clock.
    time: int
    # Who sent it, and the number of the batch there.
    node: str
    batch: int
    # Which entries are for certain sockets alone: twice the index, and one more if no session
    # has any of them, so that nobody can come back for it.
    private: tuple[int, ...]
    entries: msgspec.Raw


_encode: Final = msgspec.msgpack.Encoder().encode
decode_frame: Final = msgspec.msgpack.Decoder(Frame).decode
decode_entries: Final = msgspec.msgpack.Decoder(list[Entry]).decode
decode_entry: Final = msgspec.msgpack.Decoder(Entry).decode


def encode_entry(publication: Publication, *, recorded: bool) -> bytes:
    """Return a publication's bytes."""
    data = publication.payload
    return _encode(
        Entry(
            recorded,
            publication.rooms,
            publication.except_,
            publication.event,
            data.json,
            data.attachments,
            publication.policy,
            publication.key,
        )
    )
