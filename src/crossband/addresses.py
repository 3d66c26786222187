"""Finds a request's client address, trusting the headers of trusted proxies only. Pure."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

# Length of the prefix that a provider usually gives one customer, who can vary the rest.
CUSTOMER_PREFIX: Final = 64
# Size of each cache: the same few proxies and clients come again and again. Keys are as short as
# addresses, since a server gave them or they were parsed.
_KEPT: Final = 1_024


@lru_cache(maxsize=_KEPT)
def network_of(address: str) -> str:
    """Return the key that connections are counted by: an IPv4 address or an IPv6 /64.

    Whoever has one IPv6 address has 2^64 of them. Anything else is returned as it is.
    """
    found = _parse(address)
    if isinstance(found, IPv6Address):
        return str(IPv6Network((found.packed, CUSTOMER_PREFIX), strict=False))
    return address if found is None else str(found)


class TrustedProxies:
    """The proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are trusted.

    Takes addresses and networks such as "10.0.0.0/8", "unix" for any peer on a unix socket,
    and "*" for everybody: then clients can put anything in the header. Raises ValueError for
    anything else.
    """

    __slots__ = ("_all", "_networks", "_unix", "_within")

    def __init__(self, proxies: Iterable[str]) -> None:
        names = set(proxies)
        self._all = "*" in names
        self._unix = "unix" in names
        try:
            self._networks = [ip_network(name) for name in sorted(names - {"*", "unix"})]
        except ValueError as error:
            raise ValueError(
                "trusted_proxies takes addresses and networks such as '10.0.0.0/8', 'unix' or "
                f"'*': {error}"
            ) from None
        self._within = lru_cache(maxsize=_KEPT)(self._look_up)

    def __bool__(self) -> bool:
        return bool(self._all or self._unix or self._networks)

    def trusts(self, peer: str | None) -> bool:
        """Return whether a peer is a trusted proxy; None is a peer without an address."""
        if self._all:
            return True
        return self._unix if peer is None else self._within(peer)

    def _look_up(self, peer: str) -> bool:
        address = _parse(peer)
        return address is not None and any(address in network for network in self._networks)

    def client(self, peer: str | None, forwarded_for: str) -> str | None:
        """Return the client's address: the last hop that is not a trusted proxy.

        Each proxy appends the address of its peer, so the header is read from its end, and
        only as far as the hops are trusted: the client may have written anything before them.
        A hop that is not an address is ignored: the hop that reported it counts as the client.
        """
        address = peer
        for hop in reversed(forwarded_for.split(",")):
            if not self.trusts(address):
                break
            found = _parse(_without_port(hop.strip()))
            if found is None:
                break
            address = str(found)
        return address

    def apply(self, scope: MutableMapping[str, Any]) -> None:
        """Put the client's address and scheme into an ASGI scope that came from a proxy."""
        client = scope.get("client")
        # For the peer of a unix socket, some servers have None and some an empty host.
        peer = client[0] if client and client[0] else None
        if not self.trusts(peer):
            return
        forwarded: list[str] = []
        scheme = ""
        for name, value in scope["headers"]:
            if name == b"x-forwarded-for":
                forwarded.append(value.decode("latin-1"))
            elif name == b"x-forwarded-proto":
                # The last one is from the proxy we know.
                scheme = value.decode("latin-1").rpartition(",")[2].strip().lower()
        if forwarded:
            address = self.client(peer, ",".join(forwarded))
            if address != peer:
                scope["client"] = (address, 0)
        if scheme in ("http", "https", "ws", "wss"):
            secure = scheme in ("https", "wss")
            if scope["type"] == "websocket":
                scope["scheme"] = "wss" if secure else "ws"
            else:
                scope["scheme"] = "https" if secure else "http"


def _without_port(hop: str) -> str:
    # Some proxies write "192.0.2.1:4711" or "[2001:db8::1]:4711".
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    try:
        # A zone, as in "fe80::1%eth0", is the machine's own name for a link.
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
