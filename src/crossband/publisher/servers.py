"""The clients of Redis that publishers use, and what their failures mean."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import redis.asyncio as aio
from redis import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from redis.sentinel import Sentinel

from crossband.broker.redis.address import Address, Login, parse
from crossband.broker.redis.replies import Remedy, ServerError, advice, remedy

# What a step may raise that failed at a server, or on the way to it.
FAILURES: Final = (RedisError, RedisClusterException, OSError)

# Codes of errors that redis-py replaces by a class. Since 7 it keeps the code, too.
_CODES: Final[Mapping[type[Exception], str]] = {
    AuthorizationError: "NOAUTH",
    AuthenticationError: "WRONGPASS",
    NoPermissionError: "NOPERM",
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a step failed."""

    # For the caller, with what to do about it.
    text: str
    # Trying again may help.
    passing: bool
    # The step was not carried out. Otherwise it may have been.
    refused: bool


class Site:
    """Where a hub's broker is, and how its servers are reached."""

    def __init__(self, url: str, timeout: float) -> None:
        if url.partition(":")[0] == "memory":
            raise ValueError(
                "memory:// is inside the hub's own process: a publisher needs the hub's "
                "redis:// URL"
            )
        self.address: Final[Address] = parse(url)
        # SPUBLISH reaches those who subscribe to a slot of a cluster.
        self.verb: Final = "SPUBLISH" if self.address.kind == "cluster" else "PUBLISH"
        self._tls = _tls_options(url) if self.address.tls is not None else {}
        self._timeout = timeout

    def _options(self, login: Login) -> dict[str, Any]:
        return {
            "username": login.username,
            "password": login.password,
            "protocol": 2,
            # Time for a second attempt.
            "socket_timeout": self._timeout / 2,
            "socket_connect_timeout": self._timeout / 2,
            "client_name": f"crossband:publisher:{os.getpid()}",
            **self._tls,
        }

    def blocking(self) -> Any:
        """Return a client that blocks. It retries nothing: that is up to the caller."""
        address, options = self.address, self._options(self.address.login)
        options["retry"] = Retry(NoBackoff(), 0)
        if address.kind == "cluster":
            # redis-py is typed in part.
            nodes = [
                ClusterNode(place.host, place.port)  # type: ignore[no-untyped-call]
                for place in address.places
            ]
            return RedisCluster(startup_nodes=nodes, require_full_coverage=False, **options)
        options["db"] = address.login.database
        if address.kind == "sentinel":
            hosts = [(place.host, place.port) for place in address.places]
            own = self._options(address.sentinel_login)
            sentinel = Sentinel(hosts, sentinel_kwargs=own)  # type: ignore[no-untyped-call]
            return sentinel.master_for(address.service, **options)  # type: ignore[no-untyped-call]
        (place,) = address.places
        if place.path is not None:
            return Redis(unix_socket_path=place.path, **options)
        return Redis(place.host, place.port, **options)

    def awaited(self) -> Any:
        """Return a client for asyncio, of the running loop. It retries nothing."""
        address, options = self.address, self._options(self.address.login)
        options["retry"] = AsyncRetry(NoBackoff(), 0)
        if address.kind == "cluster":
            nodes = [AsyncClusterNode(place.host, place.port) for place in address.places]
            return AsyncRedisCluster(startup_nodes=nodes, require_full_coverage=False, **options)
        options["db"] = address.login.database
        if address.kind == "sentinel":
            hosts = [(place.host, place.port) for place in address.places]
            own = self._options(address.sentinel_login)
            sentinel = AsyncSentinel(hosts, sentinel_kwargs=own)  # type: ignore[no-untyped-call]
            return sentinel.master_for(address.service, **options)
        (place,) = address.places
        if place.path is not None:
            return aio.Redis(unix_socket_path=place.path, **options)
        return aio.Redis(host=place.host, port=place.port, **options)

    def failure(self, error: Exception) -> Failure:
        """Return what a failure means. Raises it if it is a mistake of ours."""
        code = _code(error)
        if code is not None:
            refusal = ServerError(str(error) if str(error).startswith(code) else f"{code} {error}")
            passing = remedy(refusal) in (Remedy.MOVE, Remedy.WAIT)
            return Failure(f"{self.address}: {advice(refusal)}", passing, True)
        if not isinstance(
            error, (RedisConnectionError, RedisTimeoutError, RedisClusterException, OSError)
        ):
            raise error
        final = "Cluster mode is not enabled" in str(error)
        text = f"no connection to Redis at {self.address}: {error}"
        return Failure(text, not final, False)


def _code(error: Exception) -> str | None:
    """Return the code of an error that a server replied with; None for other errors."""
    code = getattr(error, "status_code", None)
    if isinstance(code, str):
        return code
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    if isinstance(error, ResponseError):
        return str(error).partition(" ")[0]
    return None


def _tls_options(url: str) -> dict[str, Any]:
    """Return the options of TLS, which are named as redis-py names them."""
    options: dict[str, Any] = {
        name: value for name, value in parse_qsl(urlsplit(url).query) if name.startswith("ssl_")
    }
    checked = str(options.get("ssl_check_hostname", "")).lower() not in ("false", "no", "0")
    options["ssl_check_hostname"] = checked and options.get("ssl_cert_reqs") != "none"
    return {"ssl": True, **options}


def close_blocking(client: Any) -> None:
    """Close a client's connections."""
    for each in (client, *_sentinels(client)):
        each.close()


async def close_awaited(client: Any) -> None:
    """Close a client's connections, in its own event loop."""
    for each in (client, *_sentinels(client)):
        await each.aclose()


def _sentinels(client: Any) -> list[Any]:
    """Return the clients of the Sentinels, which belong to the client of the primary."""
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    return [] if manager is None else list(manager.sentinels)


def check_timeout(seconds: object) -> float:
    """Return a number of seconds. Raises TypeError or ValueError."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"timeout is a number of seconds, not {seconds!r}")
    if not 0 < seconds < math.inf:
        raise ValueError(f"timeout is more than 0 seconds, not {seconds!r}")
    return seconds
