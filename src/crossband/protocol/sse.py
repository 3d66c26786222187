"""Server-Sent Events, server to client, as defined by the HTML standard §9.2.

Pure. No published string can start a field or end an event.
"""

from __future__ import annotations

import re
from typing import Final

from crossband.errors import EncodeError

# CR, LF and NUL break the stream, other control characters do not belong in names, and
# surrogates have no UTF-8. C1 is allowed, as in the hub's names: it has no meaning here.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
# 2^31 - 1 ms, about 25 days: the longest timer a browser can set.
MAX_RETRY: Final = 2**31 - 1


def check_name(value: str, what: str) -> None:
    """Refuse a name that contains a control character or a lone surrogate.

    Nothing is stripped: a cleaned id would no longer match the history, and a client ignores
    an id with NUL and so loses its place in the stream. `what` names the value in the error.

    Raises EncodeError.
    """
    if found := _CONTROL.search(value):
        raise EncodeError(
            f"{what} holds {found[0]!a} at character {found.start()}; "
            "control characters cannot be sent"
        )


def encode_event(
    data: str, *, event: str | None = None, id: str | None = None, retry: int | None = None
) -> bytes:
    """Encode one event, its blank line included.

    CR and CRLF in `data` reach the client as LF: the format has no other line break. An
    empty `id` makes the client forget its cursor. `retry` is in milliseconds.

    Raises EncodeError for a control character in `event` or `id`, an empty `event`, a
    `retry` out of range, or a lone surrogate in `data`.
    """
    # Hot: once per publication.
    text = "data: " + data
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\n" in text:
        # Only LF is left to split on. str.splitlines() would split on U+2028 and others.
        text = text.replace("\n", "\ndata: ")
    if event is not None:
        if not event:
            raise EncodeError("event is empty")
        check_name(event, "event")
        text = f"event: {event}\n{text}"
    if retry is not None:
        text = f"retry: {_milliseconds(retry)}\n{text}"
    if id is not None:
        # Last, because some decoders apply an id before the event ends: then they have its data.
        check_name(id, "id")
        text = f"{text}\nid: {id}"
    try:
        return (text + "\n\n").encode()
    except UnicodeEncodeError as error:
        raise EncodeError(f"data is not valid text: {error}") from error


def encode_comment(text: str = "") -> bytes:
    """Encode a comment, which clients skip: it keeps an idle stream open.

    No blank line follows, because some decoders would read it as an event.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    try:
        return "".join(f": {line}\n" if line else ":\n" for line in lines).encode()
    except UnicodeEncodeError as error:
        raise EncodeError(f"comment is not valid text: {error}") from error


def encode_retry(ms: int) -> bytes:
    """Encode how many milliseconds a client waits before it reconnects.

    It takes effect without a blank line; see `encode_comment`.

    Raises EncodeError below 0 or above MAX_RETRY.
    """
    return b"retry: %d\n" % _milliseconds(ms)


def _milliseconds(value: int) -> int:
    if not 0 <= value <= MAX_RETRY:
        raise EncodeError(f"retry must be 0 to {MAX_RETRY} ms")
    return int(value)
