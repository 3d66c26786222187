"""Socket ids: how one is made, and how a room's name is known to be one."""

from __future__ import annotations

import secrets
from typing import Final

# Socket ids are 20 characters: the sharded Redis adapter knows them by that.
SID_LENGTH: Final = 20


def new_id() -> str:
    """Return a fresh public id of 20 characters, 76 bits of them random."""
    return "_" + secrets.token_hex(SID_LENGTH // 2)[1:]


def is_socket_id(room: str) -> bool:
    """Return whether this room name is a socket id, of a client connected now or not.

    A client must never join such a room by its name: it would hear what is sent to that socket.
    """
    return len(room) == SID_LENGTH and room[0] == "_" and room[1:].isascii() and room[1:].isalnum()
