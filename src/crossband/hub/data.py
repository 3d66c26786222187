"""What an application keeps with a client: `socket.data`, checked when it is set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from crossband.broker.sessions import check_plain


class SocketData(dict[str, Any]):
    """A dict of plain data, kept with the session and passed from node to node.

    Setting anything else raises TypeError or ValueError, as `check_plain` does. The contents of
    a list or dict are checked when it is set; what changes in them later is neither checked nor
    noticed.
    """

    __slots__ = ("_changed",)

    # Called after each change. Absent if nobody is told.
    _changed: Callable[[], None] | None

    def tell(self, changed: Callable[[], None] | None) -> None:
        """Call a function after each change; None to tell nobody."""
        self._changed = changed

    def __getstate__(self) -> None:
        """Keep copies from telling anybody of changes, and from copying what would be told."""

    def _tell(self) -> None:
        changed = getattr(self, "_changed", None)
        if changed is not None:
            changed()

    def __setitem__(self, key: str, value: Any) -> None:
        check_plain({key: value}, "socket.data")
        super().__setitem__(key, value)
        self._tell()

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self._tell()

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        # All or nothing: checked before anything is set.
        new = dict(*args, **kwargs)
        check_plain(new, "socket.data")
        super().update(new)
        self._tell()

    def __ior__(self, other: Any) -> SocketData:  # type: ignore[override,misc]
        self.update(other)
        return self

    def pop(self, key: str, *default: Any) -> Any:
        value = super().pop(key, *default)
        self._tell()
        return value

    def popitem(self) -> tuple[str, Any]:
        item = super().popitem()
        self._tell()
        return item

    def clear(self) -> None:
        super().clear()
        self._tell()


class Saving:
    """Saves a client's session soon after its data changes: once for all changes of a tick.

    Otherwise a node that is killed would lose what was set since the last save. Not needed
    where the store keeps the very object that the application changes.
    """

    __slots__ = ("_data", "_due", "_post", "_save")

    def __init__(
        self,
        data: dict[str, Any],
        post: Callable[[Callable[[], None]], None],
        save: Callable[[], None],
    ) -> None:
        self._data = data
        # Runs a function on the hub's loop, in its next tick; may be called in any thread.
        self._post = post
        self._save: Callable[[], None] | None = save
        self._due = False
        if isinstance(data, SocketData):
            data.tell(self._changed)

    def _changed(self) -> None:
        if not self._due:
            self._due = True
            self._post(self._save_now)

    def _save_now(self) -> None:
        self._due = False
        if self._save is not None:
            self._save()

    def stop(self) -> None:
        """Save no more, not even what has changed in this tick."""
        self._save = None
        if isinstance(self._data, SocketData):
            self._data.tell(None)

    def finish(self) -> None:
        """Save at once what has changed in this tick, and no more after that."""
        if self._due:
            self._save_now()
        self.stop()


def merged(kept: Mapping[str, Any], seen: Mapping[str, Any], own: Mapping[str, Any]) -> SocketData:
    """Return the kept data with the changes made here since it was last seen."""
    data = SocketData()
    dict.update(data, kept)
    for key, value in own.items():
        if key not in seen or seen[key] != value:
            dict.__setitem__(data, key, value)
    return data
