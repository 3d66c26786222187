"""Brokers by their URL."""

from __future__ import annotations

from typing import Final

from crossband.broker import Broker
from crossband.broker.memory import MemoryBroker

MEMORY: Final = "memory://"


def is_elsewhere(url: str) -> bool:
    """Return whether a URL means a broker outside of this process, right or wrong."""
    scheme, separator, _ = url.partition("://")
    return bool(separator) and scheme.lower().startswith(("redis", "valkey", "unix"))


def check_url(url: str) -> None:
    """Raise ValueError for a URL that no broker has, and for one that cannot be read.

    Raises ImportError if the client for it is not installed.
    """
    open_broker(url)


def open_broker(
    url: str,
    *,
    history_size: int = 100_000,
    history_bytes: int = 67_108_864,
    history_age: float = 120.0,
) -> Broker:
    """Return the broker of a URL, with the history's bounds as MemoryBroker has them; not started.

    Raises ValueError for a URL that no broker has, and for one that cannot be read; ImportError if
    the client for it is not installed.
    """
    if url == MEMORY:
        return MemoryBroker(
            history_size=history_size, history_bytes=history_bytes, history_age=history_age
        )
    if not is_elsewhere(url):
        scheme = url.partition("://")[0].lower()
        raise ValueError(
            f"no broker for {scheme!r}: there are 'memory://', 'redis://', 'rediss://', 'unix://', "
            "'redis+sentinel://' and 'redis+cluster://'"
        )
    try:
        # An extra.
        from crossband.broker.redis import RedisBroker
    except ImportError as error:
        raise ImportError(
            f"a broker in Redis needs the extra: pip install 'crossband[redis]' ({error})"
        ) from None
    return RedisBroker(
        url, history_size=history_size, history_bytes=history_bytes, history_age=history_age
    )
