"""What servers answer: errors by their code, and what to do about them."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

# Before 7.0, Redis tells of a command's error in a script within one of its own.
_of_script: Final = re.compile(r"running script .*@user_script: ?\d+: -?([A-Z]+ .*)", re.DOTALL)


class ServerError(Exception):
    """A server's error reply: a code in capitals, and a text."""

    def __init__(self, text: str) -> None:
        match = _of_script.search(text)
        text = text if match is None else match[1].strip()
        super().__init__(text)
        self.code: str = text.partition(" ")[0]


class Remedy(Enum):
    """What to do about an error."""

    # Send the script itself.
    LOAD = "load"
    # The server is not, or no longer, the one to ask: look for that one, and ask it.
    MOVE = "move"
    # Ask again soon.
    WAIT = "wait"
    # Nothing that this process can do.
    TELL = "tell"


REMEDIES: Final = {
    "NOSCRIPT": Remedy.LOAD,
    "READONLY": Remedy.MOVE,
    "MOVED": Remedy.MOVE,
    "MASTERDOWN": Remedy.MOVE,
    "NOREPLICAS": Remedy.WAIT,
    "LOADING": Remedy.WAIT,
    "BUSY": Remedy.WAIT,
    "TRYAGAIN": Remedy.WAIT,
    "ASK": Remedy.WAIT,
    "CLUSTERDOWN": Remedy.WAIT,
}

# What an operator should do, by code.
ADVICE: Final = {
    "OOM": "Redis is full: give it more memory, or shorten the history",
    "MISCONF": "Redis cannot save to its disk, and takes no writes: see its log",
    "READONLY": "this is a read-only replica: give the primary's address",
    "NOREPLICAS": "Redis has too few replicas, and takes no writes",
    "LOADING": "Redis is still loading its data",
    "BUSY": "Redis is busy with somebody's script",
    "CLUSTERDOWN": "the cluster is down: some of its slots have no server",
    "WRONGPASS": "the user or the password is wrong",
    "NOAUTH": "Redis asks for a password: put it into the URL",
    "NOPERM": "Redis does not permit its user to do this: see the ACL in the how-to for Redis",
    "WRONGTYPE": "a key of Crossband's is somebody else's: give each application a prefix, "
    "'?prefix=…' in the URL",
    "MASTERDOWN": "the replica has no primary",
}


def advice(error: ServerError) -> str:
    """Return an error with what to do about it."""
    text = ADVICE.get(error.code)
    return str(error) if text is None else f"{text} ({error})"


def remedy(error: ServerError) -> Remedy:
    """Return what to do about an error."""
    return REMEDIES.get(error.code, Remedy.TELL)
