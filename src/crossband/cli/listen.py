"""`crossband listen`: shows in the terminal the events that a client of a door gets."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec
from rich.console import Console
from rich.text import Text

from crossband.client.doors import Door
from crossband.client.following import follow
from crossband.client.listener import Event, Listener, Notice
from crossband.errors import CrossbandError


class OutputFailed(CrossbandError):
    """Received events could not be written to standard output."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


@dataclass(slots=True)
class Output:
    """Writes events to standard output, notices about the stream to standard error."""

    door: Door
    json: bool
    # Only these events; if empty, all.
    events: frozenset[str] = frozenset()
    count: int = 0
    _out: Console = field(default_factory=lambda: Console(soft_wrap=True, highlight=False))
    _err: Console = field(
        default_factory=lambda: Console(soft_wrap=True, highlight=False, stderr=True)
    )

    def event(self, event: Event) -> None:
        """Write an event, unless it is filtered out. Raises OutputFailed."""
        if self.events and event.name not in self.events:
            return
        self.count += 1
        try:
            self._write(event)
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise OutputFailed(exc) from exc

    def _write(self, event: Event) -> None:
        now = datetime.now(UTC)
        if self.json:
            line = msgspec.json.encode(
                {
                    "time": now.isoformat(timespec="milliseconds"),
                    "door": self.door,
                    "event": event.name,
                    "data": msgspec.Raw(event.data),
                    "offset": event.offset,
                }
            )
            sys.stdout.write(line.decode() + "\n")
            sys.stdout.flush()
            return
        text = Text.assemble(
            (f"{now.astimezone():%H:%M:%S}", "dim"),
            "  ",
            (f"{self.door:<9}", "cyan"),
            "  ",
            (f"{printable(event.name):<16}", "bold green"),
            "  ",
            printable(event.data.decode()),
        )
        if event.offset is not None:
            text.append(f"  {printable(event.offset)}", "dim")
        self._out.print(text)
        self._out.file.flush()

    def notice(self, kind: str, text: str) -> None:
        """Write a line about the stream."""
        style = {"gap": "bold yellow", "error": "red", "connected": "dim", "resumed": "green"}
        self._err.print(Text(printable(text), style.get(kind, "yellow")))


def printable(text: str) -> str:
    """Escape control characters: events must not control the reader's terminal."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


async def show(listener: Listener, output: Output, *, limit: int | None = None) -> None:
    """Show a stream forever, or for `limit` events.

    Raises Refused, Lost if not even the first attempt connected, and OutputFailed.
    """
    async with contextlib.aclosing(follow(listener)) as items:
        async for item in items:
            if isinstance(item, Notice):
                output.notice(item.kind, item.text)
                continue
            output.event(item)
            if limit is not None and output.count >= limit:
                return
