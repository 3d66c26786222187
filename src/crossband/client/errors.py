"""Why a stream cannot be followed, or no longer can, and how to say it."""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import urlsplit

from crossband.client.values import encode, object_of
from crossband.errors import CrossbandError


class Refused(CrossbandError):
    """The server refused; coming back would not help."""


class Lost(CrossbandError):
    """The connection failed or ended; another attempt may work."""


def status_error(status: int, body: bytes | bytearray, url: str) -> Refused | Lost:
    """Return the exception for an HTTP status other than success."""
    if status == 204:
        return Refused("the server has nothing (more) to send here (204)")
    text = f"HTTP {status}"
    error = object_of(bytes(body))
    if error:
        text += f": {error_text(error)}"
    elif status == 404:
        text += f": nothing at {urlsplit(url).path}"
    if status >= 500 or status in (408, 429):
        return Lost(text)
    return Refused(text)


def error_text(error: dict[str, Any]) -> str:
    """Return a server's error as one line, with its details."""
    text = str(error.get("error") or error.get("message") or "unknown error")
    names = ("code", "path", "reason", "event", "maxSize", "data")
    found = {name: error[name] for name in names if error.get(name) is not None}
    # Socket.IO nests in `data` what the other doors have next to the text.
    if isinstance(data := found.get("data"), dict):
        del found["data"]
        found.update((name, value) for name, value in data.items() if name != "error")
    details = [
        f"{name}: {value if isinstance(value, str) else encode(value).decode()}"
        for name, value in found.items()
    ]
    return f"{text} ({', '.join(details)})" if details else text


def reason_of(exc: BaseException) -> str:
    """Return in a few words why a connection failed."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, ConnectionRefusedError):
            return "connection refused"
        if isinstance(seen, ssl.SSLCertVerificationError):
            return f"the certificate is not trusted ({seen.verify_message}); see --insecure"
        if isinstance(seen, ssl.SSLError):
            return f"TLS failed ({seen.reason or seen}); is it a TLS port?"
        if isinstance(seen, OSError) and seen.strerror:
            found = seen.strerror
            if "Multiple exceptions" in found:
                break
            return found[0].lower() + found[1:]
        seen = seen.__cause__ or seen.__context__
    text = str(exc) or type(exc).__name__
    if "Connect call failed" in text or "All connection attempts failed" in text:
        return "connection refused"
    return text
