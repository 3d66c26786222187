"""What an application keeps with a client: `socket.data`, checked when it is set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossband.broker.sessions import check_plain


class SocketData(dict[str, Any]):
    """A dict of plain data, kept with the session and passed from node to node.

    Setting anything else raises TypeError or ValueError, as `check_plain` does. The contents of
    a list or dict are checked when it is set, not when it changes later.
    """

    __slots__ = ()

    def __setitem__(self, key: str, value: Any) -> None:
        check_plain({key: value}, "socket.data")
        super().__setitem__(key, value)

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        # All or nothing: checked before anything is set.
        new = dict(*args, **kwargs)
        check_plain(new, "socket.data")
        super().update(new)

    def __ior__(self, other: Any) -> SocketData:  # type: ignore[override,misc]
        self.update(other)
        return self


def merged(kept: Mapping[str, Any], seen: Mapping[str, Any], own: Mapping[str, Any]) -> SocketData:
    """Return the kept data with the changes made here since it was last seen."""
    data = SocketData()
    dict.update(data, kept)
    for key, value in own.items():
        if key not in seen or seen[key] != value:
            dict.__setitem__(data, key, value)
    return data
