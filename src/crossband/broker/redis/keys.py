"""The names of keys and channels. All of one namespace are in one slot of a cluster."""

from __future__ import annotations

from typing import Final

# What the names of keys mean, and the forms of what is in them. Nodes of another version do not
# share a hub with this one.
VERSION: Final = "crossband 1"


class Keys:
    """The names under one prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.version: Final = f"{prefix}:version"
        # The members of the bus, and what all of them hear.
        self.nodes: Final = f"{prefix}:{{bus}}:nodes"
        self.hall: Final = f"{prefix}:{{bus}}:all"
        self.revoked: Final = f"{prefix}:{{revoked}}:users"
        self.revoked_order: Final = f"{prefix}:{{revoked}}:order"

    def node(self, node: str) -> str:
        """Return the channel of what is sent to one node."""
        return f"{self._prefix}:{{bus}}:node:{node}"

    def beat(self, node: str, tag: str = "bus") -> str:
        """Return the channel of a node's heartbeat to itself."""
        return f"{self._prefix}:{{{tag}}}:beat:{node}"

    def base(self, namespace: str) -> str:
        """Return what the keys of a namespace begin with, and its channel's name."""
        # Braces would end the tag by which a cluster finds the slot.
        name = namespace.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
        return f"{self._prefix}:{{{name}}}:"
