#!/usr/bin/env python3
"""Writes docs/reference/python.md from the signatures and docstrings of the public API.

    scripts/reference.py            writes the page
    scripts/reference.py --check    fails when the page is not current

What is public is listed here: a name that is gone, or that has no docstring, is an error.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

import crossband
import crossband.errors
import crossband.publisher
import crossband.server

PAGE = Path(__file__).parents[1] / "docs/reference/python.md"
LINE = 100

HEAD = """\
# Python API

<!-- Made by scripts/reference.py from the docstrings: change those, and run it. -->

Everything here is imported from `crossband`, except where it says otherwise. Whatever is not on
this page may change without notice.
"""


class Entry(NamedTuple):
    """A public class, and what of it is public."""

    name: str
    # Methods and properties, in the order of the page.
    members: tuple[str, ...] = ()
    # Attributes that no property documents: name and type, what it is.
    attributes: tuple[tuple[str, str], ...] = ()
    module: str = "crossband"
    # More about the class.
    note: str = ""
    # Whether an application makes these itself.
    made: bool = False


_HANDLERS = ("on", "on_any", "use", "use_event", "policy", "presence")
_CHOICE = ("to", "except_", "volatile", "timeout")
_SENDING = ("emit", "emit_with_ack")
_SERVERS = ("on_server", "server_emit", "server_emit_with_ack")
_TELLING = ("server_emit", "sockets_join", "sockets_leave", "disconnect_sockets")
_REMOTE = ("fetch_sockets", "sockets_join", "sockets_leave", "disconnect_sockets")

PARTS: dict[str, tuple[Entry, ...]] = {
    "Hub and namespaces": (
        Entry(
            "Hub",
            (
                *("of", "on_start", "on_stop", "spawn", "configure", "lifespan", "start", "stop"),
                *("uptime", "status", "status_of_all", "serves"),
                *("sockets_of", "revoke"),
            ),
            (
                ("broker: Broker", "Where publications are ordered and kept."),
                ("authenticate: Authenticate | None", "What says who a client is."),
                ("started: bool", "Whether it runs on an event loop."),
                ("settings: Settings", "What the hub was made with."),
                ("namespaces: Mapping[str, Namespace]", "The namespaces there are now, by name."),
                ("stopping: bool", "From the beginning of a stop."),
            ),
            note="Called on the hub, what a [`Namespace`](#namespace) has is that of `/`.",
            made=True,
        ),
        Entry(
            "Namespace",
            (
                *(*_HANDLERS, *_CHOICE, *_SENDING, *_REMOTE, *_SERVERS, "members"),
                *("sockets", "rooms", "events"),
            ),
            (("name: str", "Begins with `/`."), ("hub: Hub", "The hub it belongs to.")),
            note="From `hub.of(…)`. `in_` is another name of `to`.",
        ),
        Entry(
            "NamespacePattern",
            ("emit", "events"),
            note=(
                "It has `on`, `on_any`, `on_server`, `use`, `use_event`, `policy` and `presence`, "
                "as [`Namespace`](#namespace) does."
            ),
        ),
    ),
    "Clients": (
        Entry(
            "Socket",
            (
                *("rooms", "transport", "waiting", "join", "leave", "subscribe", "authorize"),
                "update_presence",
                *(*_SENDING, "timeout", "volatile", "broadcast", "to", "except_", "disconnect"),
            ),
            (
                ("id: str", "Public, 20 characters; also the name of its own room."),
                ("session: str", "The client's secret for coming back."),
                (
                    "data: dict[str, Any]",
                    "The application's own, plain data; checked where it is set.",
                ),
                ("namespace: Namespace", "The namespace it is in."),
                ("handshake: Handshake", "What is known since it connected."),
                ("identity: Identity | None", "Who it is; None without `authenticate`."),
                ("connected: bool", "Whether it is in the namespace."),
                ("recovered: bool", "It came back as itself: same id, rooms and data."),
            ),
        ),
        Entry(
            "RemoteSocket",
            ("join", "leave", "emit", "emit_with_ack", "disconnect"),
            (
                ("id: str", "Public, 20 characters; also the name of its own room."),
                ("rooms: frozenset[str]", "Those it was in, that of its own id included."),
                ("data: dict[str, Any]", "A copy of the application's own."),
                ("user: str | None", "Whose client it is."),
                ("transport: str", '"websocket", "polling" or "sse".'),
                ("handshake: Handshake", "Without query, auth and what headers may hide."),
                ("node: str", "The node that serves it."),
            ),
        ),
        Entry("Member"),
        Entry("Members"),
        Entry("Handshake"),
    ),
    "Auth": (
        Entry("JWTAuth", ("verify",), made=True),
        Entry("Identity"),
        Entry("Rights", ("allow",)),
        Entry("rooms_claim"),
        Entry("bearer_token"),
        Entry("Unauthorized", made=True),
    ),
    "Sending": (
        Entry("Emitter", (*_CHOICE, *_SENDING, *_REMOTE)),
        Entry("Emission", ("result",)),
    ),
    "Typed events": (
        Entry(
            "EventSchema",
            ("json_schema",),
            (
                ("name: str", "The event's name."),
                ("doc: str | None", "The handler's docstring."),
                ("returns: Any", "The handler's return annotation."),
            ),
        ),
    ),
    "Errors": (
        Entry("CrossbandError"),
        Entry("ConnectionRefused", made=True),
        Entry("EventError", ("to_dict",), made=True),
        Entry("InvalidMessage", made=True),
        Entry("InvalidName"),
        Entry("EncodeError"),
        Entry("AckTimeout"),
        Entry("BrokerUnavailable"),
        Entry("Disconnected"),
        Entry("CloseCode", ("reconnect",)),
    ),
    "Configuration": (Entry("Settings"), Entry("Limits")),
    "Brokers": (
        Entry(
            "Broker",
            ("start", "stop", "problem", "attach", "detach", "publish", "head", "history"),
            (
                ("sessions: SessionStore", "The sessions of all nodes."),
                ("presence: PresenceStore", "The members of rooms, on all nodes."),
                ("bus: Bus", "This node's end of the bus between them."),
                ("publishes_at_once: bool", "`publish` returns no futures."),
            ),
        ),
        Entry("MemoryBroker", ("peer",), made=True),
        Entry("Publication"),
        Entry("Page", module="crossband.broker"),
        Entry("Receiver", ("deliver", "lost", "taken"), module="crossband.broker"),
        Entry("Session"),
        Entry(
            "SessionStore",
            ("save", "release", "drop", "find", "take", "renew", "revoke", "revocations"),
            module="crossband.broker",
        ),
        Entry("Presence", module="crossband.broker"),
        Entry("PresenceStore", ("save", "renew", "expel", "members"), module="crossband.broker"),
        Entry(
            "Bus",
            (
                *("start", "stop", "tell", "ask", "members"),
                *("join", "part", "send", "received", "gone"),
            ),
            module="crossband.broker",
        ),
        Entry("Gap", module="crossband.errors"),
    ),
    "Publishing without a hub": (
        Entry(
            "Publisher",
            ("of", "emit", "to", "except_", "volatile", *_TELLING, "revoke", "close"),
            module="crossband.publisher",
            note="As a context manager it closes its connections at the end.",
            made=True,
        ),
        Entry(
            "AsyncPublisher",
            ("revoke", "close"),
            module="crossband.publisher",
            note="It has what [`Publisher`](#publisher) has, awaited.",
            made=True,
        ),
    ),
    "Serving": (
        Entry("Server", ("url", "start", "stop", "run"), module="crossband.server", made=True),
        Entry("StartError", module="crossband.server"),
    ),
}


def render() -> str:
    """Return the page."""
    entries = [entry for part in PARTS.values() for entry in part]
    listed = {entry.name for entry in entries if entry.module == "crossband"} | {"__version__"}
    if listed != set(crossband.__all__):
        raise SystemExit(f"PARTS and crossband.__all__ differ: {listed ^ set(crossband.__all__)}")
    blocks = [HEAD.rstrip()]
    blocks += [
        f"- {title}: " + ", ".join(f"[`{entry.name}`](#{entry.name.lower()})" for entry in part)
        for title, part in PARTS.items()
    ]
    # The list of contents is one block.
    blocks[1:] = ["\n".join(blocks[1:])]
    for title, part in PARTS.items():
        blocks.append(f"## {title}")
        for entry in part:
            blocks += class_blocks(entry)
    return "\n\n".join(blocks) + "\n"


def class_blocks(entry: Entry) -> Iterator[str]:
    """Yield the Markdown blocks of a class."""
    cls: type = getattr(sys.modules[entry.module], entry.name)
    yield f"### {entry.name}"
    if inspect.isfunction(cls):
        yield code(signature(cls, entry.name))
        yield docstring(cls, entry.name)
        return
    fields = field_lines(cls)
    if entry.made:
        yield code(signature(vars(cls)["__init__"], entry.name, returns=False))
    elif issubclass(cls, (Exception, enum.Enum)):
        bases = ", ".join(base.__name__ for base in cls.__bases__)
        yield code(f"class {entry.name}({bases})")
    if entry.module != "crossband":
        yield f"From `{entry.module}`."
    yield docstring(cls, entry.name)
    if entry.note:
        yield entry.note
    if issubclass(cls, enum.Enum):
        yield "Its values are in [WebSocket close codes](close-codes.md)."
    if fields:
        yield fields
    if entry.attributes:
        yield "\n".join(f"- `{name}`: {text}" for name, text in entry.attributes)
    for member in entry.members:
        yield from member_blocks(cls, member)


def member_blocks(cls: type, name: str) -> Iterator[str]:
    """Yield the Markdown blocks of a method or property."""
    where = f"{cls.__name__}.{name}"
    found = inspect.getattr_static(cls, name, None)
    if found is None:
        raise SystemExit(f"{where} is public here and does not exist")
    yield f"#### {where}"
    if isinstance(found, property):
        returns = inspect.signature(found.fget).return_annotation if found.fget else "Any"
        yield code(f"{name}: {annotation(returns)}")
        yield docstring(found, where)
        return
    overloads = typing.get_overloads(found)
    shown = [signature(each, name) for each in overloads or [found]]
    yield code("\n".join(shown))
    yield docstring(found, where)


def code(text: str) -> str:
    """Return a code block; signatures are no statements, so it names no language."""
    return f"```text\n{text}\n```"


def signature(function: Any, name: str, *, returns: bool = True) -> str:
    """Return a signature as it is written in the source, without `self`."""
    if function is object.__init__ or function is Exception.__init__:
        return name
    if not inspect.isfunction(inspect.unwrap(function)):
        return name
    parsed = inspect.signature(function)
    function = inspect.unwrap(function)
    items = [item for item in parsed.parameters.values() if item.name != "self"]
    parts: list[str] = []
    starred = False
    for item in items:
        if item.kind is item.VAR_POSITIONAL:
            starred = True
        if item.kind is item.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        text = item.name
        if item.kind is item.VAR_POSITIONAL:
            text = "*" + text
        elif item.kind is item.VAR_KEYWORD:
            text = "**" + text
        if item.annotation is not item.empty:
            text += f": {annotation(item.annotation)}"
        if item.default is not item.empty:
            default = _constant(function, item.default)
            text += f" = {default}" if item.annotation is not item.empty else f"={default}"
        parts.append(text)
    start = "async " if inspect.iscoroutinefunction(function) else ""
    end = ""
    if returns and parsed.return_annotation is not parsed.empty:
        end = f" -> {annotation(parsed.return_annotation)}"
    line = f"{start}{name}({', '.join(parts)}){end}"
    if len(line) <= LINE:
        return line
    body = "".join(f"    {part},\n" for part in parts)
    return f"{start}{name}(\n{body}){end}"


def _constant(function: Any, default: Any) -> str:
    # A default that is a function of the standard library reads as its name.
    if callable(default):
        return f"{default.__module__}.{default.__name__}"
    return repr(default)


def annotation(value: Any) -> str:
    """Return an annotation as text; the modules of the package keep theirs as strings."""
    if isinstance(value, str):
        return value.replace('"', "")
    return value.__name__ if isinstance(value, type) else str(value)


def docstring(documented: Any, where: str) -> str:
    """Return a docstring as Markdown."""
    text = inspect.getdoc(documented)
    if not text:
        raise SystemExit(f"{where} is public and has no docstring")
    return text


def field_lines(cls: type) -> str:
    """Return the fields of a struct or dataclass, with the comments above each."""
    names: set[str] = set()
    if issubclass(cls, msgspec.Struct):
        names = {field.name for field in msgspec.structs.fields(cls)}
    elif dataclasses.is_dataclass(cls):
        names = {field.name for field in dataclasses.fields(cls)}
    if not names:
        return ""
    lines = textwrap.dedent(inspect.getsource(cls)).splitlines()
    rows: list[str] = []
    comment: list[str] = []
    for line in lines:
        if match := re.fullmatch(r"    # (.*)", line):
            comment.append(match[1])
        elif (match := re.fullmatch(r"    (\w+): (.*)", line)) and match[1] in names:
            about = f": {' '.join(comment)}" if comment else ""
            field = match[2].replace("field(default_factory=dict, repr=False)", "{}")
            field = field.removesuffix(" = field(repr=False)")
            rows.append(f"- `{match[1]}: {field}`{about}")
            comment = []
        else:
            comment = []
    return "\n".join(rows)


def main() -> None:
    """Write the page, or compare it."""
    page = render()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page:
        raise SystemExit(f"{PAGE} is not current: run scripts/reference.py")


if __name__ == "__main__":
    main()
