"""Keeps tokens and session keys out of log lines."""

from __future__ import annotations

import logging
import re
from typing import Any, Final

_NAMES: Final = ("access_token", "token", "session", "pid", "sid", "api-key", "api_key")
# A query may have any letter of a name by its number.
_ANY_NAME: Final = "|".join(
    "".join(f"(?:{letter}|%{ord(letter):02x})" for letter in name) for name in _NAMES
)
# In queries, bodies and headers.
_SECRETS: Final = re.compile(
    rf"(?P<field>(?<!\w)(?:{_ANY_NAME})\b[\"']?\s*[=:]\s*[\"']?)"
    r"(?!Bearer\b)[^&\s\"'#;,<>)}\]]+"
    r"|(?P<scheme>\bbearer[ .])[\w~+/.=-]{8,}",
    re.IGNORECASE,
)
# Headers that carry what only the client and we may know.
_SECRET_HEADERS: Final = frozenset(
    {"authorization", "cookie", "sec-websocket-protocol", "x-api-key", "x-crossband-session"}
)
# What looks like a JWT, wherever it stands: in a run of its letters, `{"` in base64 and a dot
# somewhere behind it. One pattern for that would take seconds over a client's long line.
_RUN: Final = re.compile(r"[\w.-]+")
_START: Final = re.compile(r"\beyJ")
_formatter: Final = logging.Formatter()
# Loggers of ours, and of the servers that print addresses.
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
    """Redact a log record: a filter for loggers, which lets every record pass."""
    if isinstance(record.args, tuple):
        # One by one first: the formatter of an access log wants them apart.
        record.args = tuple(_redact_argument(value) for value in record.args)
    try:
        message = record.getMessage()
    except (TypeError, ValueError, KeyError):
        # The handlers tell of a format that does not fit, with its arguments as they are now.
        return True
    if (redacted := redact(message)) != message:
        record.msg, record.args = redacted, ()
    if record.exc_info and not record.exc_text:
        error = record.exc_info
        if isinstance(error, tuple):
            # Formatters print this text where it is set.
            record.exc_text = redact(_formatter.formatException(error))
    return True


def _redact_argument(value: Any) -> Any:
    if value is None or isinstance(value, (int, float)):
        return value
    text = str(value)
    redacted = redact(text)
    # What has no secret stays what it is: a format may want more than its text.
    return value if redacted == text else redacted


def without_credentials(record: logging.LogRecord) -> bool:
    """Drop query strings and credentials from uvicorn's and websockets' log lines: a filter."""
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
    """Redact what the loggers of `LOGGERS` print. Does nothing the second time."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if redacting not in logger.filters:
            logger.addFilter(redacting)
