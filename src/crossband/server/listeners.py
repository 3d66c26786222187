"""The sockets that a server listens on: TCP on every address of a name, or a unix socket.

They are bound here and not by uvicorn, so that port 0 works and a busy port gives a clear error.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from crossband.errors import StartError

_BACKLOG: Final = 2048
# Mode of a unix socket, as in uvicorn: a proxy of another user must be able to connect.
UDS_MODE: Final = 0o666


async def bind_tcp(host: str, port: int) -> list[socket.socket]:
    """Listen on every address of a host. Raises StartError.

    With port 0, listens only on the first address, on a free port.
    """
    if not 0 <= port <= 65_535:
        raise StartError(f"port {port} does not exist; ports are 0 to 65535")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, OverflowError, UnicodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise StartError(f"cannot listen on {host!r}: {reason}") from exc
    # "localhost" has two addresses. Port 0 means one free port, so use only the first.
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, address in addresses:
        try:
            sock = _listen(family, address, alone=len(addresses) == 1)
            sockets.append(sock)
        except OSError as exc:
            failure = exc
            # A name can have an IPv6 address on a machine without IPv6.
            if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                break
        else:
            failure = None
            if port == 0:
                break
    if failure is not None and (not sockets or failure.errno == errno.EADDRINUSE):
        for sock in sockets:
            sock.close()
        raise _bind_error(failure, host, port) from failure
    return sockets


def _listen(family: int, address: tuple[Any, ...], *, alone: bool) -> socket.socket:
    # The protocol is given because asyncio sets TCP_NODELAY only then: without it, the two
    # writes of a response wait 40 ms for the client's delayed acknowledgement.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # So that a restart need not wait for TIME_WAIT of old connections. On Windows the
        # option would let two servers share the port.
        if sys.platform != "win32":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" also serves IPv4, as in most servers, unless 0.0.0.0 is bound as well; any
            # other address leaves the port free for 127.0.0.1.
            dual = alone and address[0] == "::"
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not dual))
        sock.bind(address)
        # `listen` is the call that fails if another process listens on the same address.
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def notice_half_open(sockets: Iterable[socket.socket], seconds: float) -> None:
    """Let the kernel cut connections that acknowledge nothing for this long.

    A client that vanished silently acknowledges nothing of what is written. Without this it
    would count as connected for a quarter of an hour, or longer if little is written:
    WebSockets have pings, but nothing answers the comments of an event stream. Linux only
    (RFC 5482), and not on unix sockets; connections inherit it from the listener.
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is None:
        return
    milliseconds = min(max(round(seconds * 1_000), 1), 2**31 - 1)
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, milliseconds)


def _bind_error(exc: OSError, host: str, port: int) -> StartError:
    if exc.errno == errno.EADDRINUSE:
        return StartError(
            f"port {port} on {host or 'every address'} is already in use; choose another port "
            "(0 takes a free one)"
        )
    if exc.errno == errno.EACCES:
        return StartError(
            f"port {port} on {host} needs more privileges; choose a port of 1024 or above"
        )
    return StartError(f"cannot listen on {host}, port {port}: {exc.strerror or exc}")


def bind_unix(path: str, mode: int) -> socket.socket:
    """Listen on a unix socket. Raises StartError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(path)
        # Before it listens, so that nobody whom the mode excludes can connect in between.
        Path(path).chmod(mode)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise StartError(f"cannot listen on the unix socket {path}: {exc.strerror or exc}") from exc
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    """Remove the socket file of a killed server; raise StartError if it is in use."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartError(f"cannot listen on the unix socket {path}: a file of that name exists")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
    raise StartError(f"the unix socket {path} is in use by another server; choose another path")


def unlink(path: str) -> None:
    """Remove the file of a unix socket, if it is still there."""
    Path(path).unlink(missing_ok=True)
