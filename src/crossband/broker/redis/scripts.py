"""The Lua scripts: each is one atomic step. They are in `lua/`, with the keys that they use."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple


class Script(NamedTuple):
    """A script, and the name by which a server runs it once it knows it."""

    source: bytes
    sha: bytes


@cache
def _text(name: str) -> str:
    return (files("crossband.broker.redis") / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def _script(name: str, *parts: str) -> Script:
    """Return a script, behind the functions that it uses."""
    source = "\n".join([*map(_text, parts), _text(name)]).encode()
    # SHA-1 is what Redis knows scripts by.
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


APPEND: Final = _script("append", "log")
READ: Final = _script("read", "log")
TOP: Final = _script("top", "log")
TEAR: Final = _script("tear", "log")
FORGET: Final = _script("forget")
KEEP: Final = _script("keep", "log", "sessions")
DROP: Final = _script("drop", "log", "sessions")
FIND: Final = _script("find", "log", "sessions")
TAKE: Final = _script("take", "log", "sessions")
TOUCH: Final = _script("touch", "log", "sessions")
REVOKE: Final = _script("revoke")
PUBLISH: Final = _script("publish")
SHOW: Final = _script("show", "log", "presence")
RENEW: Final = _script("renew", "log", "presence")
EXPEL: Final = _script("expel", "log", "presence")
MEMBERS: Final = _script("members", "log", "presence")
