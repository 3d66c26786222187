"""What a client follows and how far it is: the state that a reconnect resumes from."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from crossband.client.doors import Door, add_query

# Seconds.
CONNECT_TIMEOUT: Final = 10.0
# Bytes of one message; a server may send larger ones than it accepts.
MAX_MESSAGE: Final = 64 * 1024 * 1024


class Event(NamedTuple):
    """One event as received; `data` is JSON text."""

    name: str
    data: bytes
    offset: str | None


class Notice(NamedTuple):
    """Something about the stream itself."""

    kind: Literal["connected", "resumed", "gap", "error", "shutdown", "lost"]
    text: str


@dataclass(slots=True)
class Listener:
    """What to follow, and how far it is: the state that a reconnect resumes from."""

    door: Door
    url: str
    rooms: list[str] = field(default_factory=list)
    namespace: str = "/"
    verify: bool = True
    # Tells the server who this client is.
    token: str | None = None
    # The cursor of the last event seen, or to start after. None: start with live events.
    offset: str | None = None
    # The key of this client's session, a secret. None until the first welcome.
    session: str | None = None

    def welcomed(self, welcome: dict[str, Any]) -> Notice:
        """Handle the first message of the WebSocket and SSE doors."""
        notice = self.connected(bool(welcome.get("recovered")))
        self.session = welcome.get("session") or self.session
        # Keep our own cursor: missed events are still to come.
        if self.offset is None:
            self.offset = welcome.get("offset")
        return notice

    def connected(self, recovered: bool) -> Notice:
        if recovered and self.session is not None:
            return Notice("resumed", "resumed where it was cut")
        where = f"{self.url}, namespace {self.namespace}" if self.namespace != "/" else self.url
        return Notice("connected", f"connected to {where}")

    def missed(self, gap: dict[str, Any]) -> Notice:
        """Handle a gap: events were lost."""
        self.offset = gap.get("offset") or self.offset
        reason = gap.get("reason")
        return Notice(
            "gap", f"GAP: events were missed ({_REASONS.get(str(reason), f'reason: {reason}')})"
        )

    def address(self, session: str, cursor: str) -> str:
        """Return the URL with the rooms, and the session and cursor in the named fields."""
        fields = [("room", room) for room in self.rooms]
        if self.session is not None and session:
            fields.append((session, self.session))
        if self.offset is not None and cursor:
            fields.append((cursor, self.offset))
        return add_query(self.url, fields)

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    def tls(self) -> ssl.SSLContext | None:
        if urlsplit(self.url).scheme not in ("https", "wss"):
            return None
        context = ssl.create_default_context()
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


_REASONS: Final = {
    "unknown": "the server does not know the cursor: it was restarted, or it is another server",
    "expired": "they are older than the server remembers",
    "session": "the server no longer knows the session",
}
