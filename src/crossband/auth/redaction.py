"""Keeps tokens and session keys out of log lines."""

from __future__ import annotations

import logging
import re
from typing import Any, Final

_NAMES: Final = ("access_token", "token", "session", "pid", "sid", "api-key", "api_key")
# A query may percent-encode any letter of a name.
_ANY_NAME: Final = "|".join(
    "".join(f"(?:{letter}|%{ord(letter):02x})" for letter in name) for name in _NAMES
)
# Secrets in queries, bodies and headers.
_SECRETS: Final = re.compile(
    rf"(?P<field>(?<!\w)(?:{_ANY_NAME})\b[\"']?\s*[=:]\s*[\"']?)"
    r"(?!Bearer\b)[^&\s\"'#;,<>)}\]]+"
    r"|(?P<scheme>\bbearer[ .])[\w~+/.=-]{8,}",
    re.IGNORECASE,
)
# Headers that carry secrets between the client and us.
_SECRET_HEADERS: Final = frozenset(
    {"authorization", "cookie", "sec-websocket-protocol", "x-api-key", "x-crossband-session"}
)
# Anything that looks like a JWT: within a run of its characters, `{"` in base64 and a dot
# somewhere after it. A single pattern would take seconds on a client's long line.
_RUN: Final = re.compile(r"[\w.-]+")
_START: Final = re.compile(r"\beyJ")
_formatter: Final = logging.Formatter()
# Our loggers, and those of servers that log addresses.
LOGGERS: Final = (
    "crossband",
    "uvicorn.access",
    "uvicorn.error",
    "hypercorn.access",
    "hypercorn.error",
)


def redact(text: str) -> str:
    """Return a text with `…` in place of tokens and session keys."""
    if "eyJ" in text:
        text = _RUN.sub(_replace_jwt, text)
    return _SECRETS.sub(_replace, text)


def _replace_jwt(match: re.Match[str]) -> str:
    run = match[0]
    start = _START.search(run)
    if start is None or "." not in run[start.end() :]:
        return run
    return f"{run[: start.start()]}…"


def _replace(match: re.Match[str]) -> str:
    return f"{match['field'] or match['scheme'] or ''}…"


def redacting(record: logging.LogRecord) -> bool:
    """Redact a log record: a filter for loggers that lets every record pass."""
    if isinstance(record.args, tuple):
        # Each argument first: the formatters of access logs read them one by one.
        record.args = tuple(_redact_argument(value) for value in record.args)
    try:
        message = record.getMessage()
    except (TypeError, ValueError, KeyError):
        # The handlers report a format that does not fit, with the arguments as they are now.
        return True
    if (redacted := redact(message)) != message:
        record.msg, record.args = redacted, ()
    if record.exc_info and not record.exc_text:
        error = record.exc_info
        if isinstance(error, tuple):
            # If this text is set, formatters print it.
            record.exc_text = redact(_formatter.formatException(error))
    return True


def _redact_argument(value: Any) -> Any:
    if value is None or isinstance(value, (int, float)):
        return value
    text = str(value)
    redacted = redact(text)
    # Without a secret it keeps its type, which the format may need.
    return value if redacted == text else redacted


def without_credentials(record: logging.LogRecord) -> bool:
    """Drop queries and credentials from log lines of uvicorn and websockets: a filter."""
    if isinstance(record.args, tuple):
        args = [
            arg.partition("?")[0] if isinstance(arg, str) and arg.startswith("/") else arg
            for arg in record.args
        ]
        # At "debug", websockets logs each header as "< %s: %s".
        if len(args) == 2 and str(args[0]).lower() in _SECRET_HEADERS:
            args[1] = "…"
        record.args = tuple(args)
    return True


def install() -> None:
    """Redact what `LOGGERS` print. Does nothing the second time."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if redacting not in logger.filters:
            logger.addFilter(redacting)
