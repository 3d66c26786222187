"""The names of keys and channels. All of one namespace are in one slot of a cluster."""

from __future__ import annotations

from typing import Final

from crossband.errors import BrokerUnavailable

# What the names of keys mean, and the forms of what is in them. Nodes of another version do not
# share a hub with this one.
VERSION: Final = "crossband 1"

# The tag of what belongs to no namespace.
BUS: Final = "bus"


class Keys:
    """The names under one prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.version: Final = f"{prefix}:{{{BUS}}}:version"
        # How much history the nodes keep, for publishers that are none of them.
        self.bounds: Final = f"{prefix}:{{{BUS}}}:bounds"
        # The members of the bus, and what all of them hear.
        self.nodes: Final = f"{prefix}:{{{BUS}}}:nodes"
        self.hall: Final = f"{prefix}:{{{BUS}}}:all"
        self.revoked: Final = f"{prefix}:{{{BUS}}}:revoked"
        self.revoked_order: Final = f"{prefix}:{{{BUS}}}:revoked:order"

    def node(self, node: str) -> str:
        """Return the channel of what is sent to one node."""
        return f"{self._prefix}:{{{BUS}}}:node:{node}"

    def beat(self, node: str, tag: str = BUS) -> str:
        """Return the channel of a node's heartbeat to itself."""
        return f"{self._prefix}:{{{tag}}}:beat:{node}"

    def base(self, namespace: str) -> str:
        """Return what the keys of a namespace begin with, and its channel's name."""
        return f"{self._prefix}:{{{tag_of(namespace)}}}:"


def tag_of(namespace: str) -> str:
    """Return the tag of a namespace's keys, by which a cluster finds their slot.

    It begins with a slash. Braces would end it.
    """
    return namespace.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")


def check_version(found: object, prefix: str) -> None:
    """Raise BrokerUnavailable if the keys are another version's, or somebody else's."""
    if found == VERSION.encode():
        return
    text = found.decode("utf-8", "replace") if isinstance(found, bytes) else repr(found)
    whose = "another version's" if text.startswith("crossband") else "somebody else's"
    raise BrokerUnavailable(
        f"the keys under the prefix {prefix!r} are {whose} ({text[:40]!r}): give this hub another "
        "prefix, '?prefix=…' in the URL"
    )
