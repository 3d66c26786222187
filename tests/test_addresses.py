"""Whose address a request came from: pure rules, and the doors behind a proxy."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from crossband import Hub, Socket
from crossband.addresses import TrustedProxies, network_of
from tests.conftest import Serve


@pytest.mark.parametrize(
    ("peer", "header", "client"),
    [
        # Not a proxy of ours: whatever it says is its own word.
        ("198.51.100.7", "203.0.113.9", "198.51.100.7"),
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        # A client that sends the header itself: the proxy appended whom it really saw.
        ("10.0.0.1", "1.1.1.1, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "10.0.0.9, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "1.1.1.1, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        # Nothing but proxies: the first of them called.
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9, evil", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9, ", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9:4711", "203.0.113.9"),
        ("10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
        ("10.0.0.1", "2001:DB8:0::1", "2001:db8::1"),
        ("10.0.0.1", "::ffff:203.0.113.9", "203.0.113.9"),
        ("::ffff:10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("2001:db8:1::5", "203.0.113.9", "203.0.113.9"),
        (None, "203.0.113.9", None),
    ],
)
def test_client_is_the_last_hop_that_is_no_trusted_proxy(
    peer: str | None, header: str, client: str | None
) -> None:
    proxies = TrustedProxies(["10.0.0.0/8", "2001:db8:1::/64"])
    assert proxies.client(peer, header) == client


def test_unix_socket_is_trusted_when_named() -> None:
    assert TrustedProxies(["unix"]).client(None, "203.0.113.9") == "203.0.113.9"


@pytest.mark.parametrize("name", ["proxy", "10.0.0.1/8", "10.0.0.0/33", ""])
def test_proxy_that_is_no_address_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="trusted_proxies takes addresses and networks"):
        Hub(trusted_proxies=[name])


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("testclient", "testclient"),
    ],
)
def test_ipv6_clients_are_counted_by_64_bits(address: str, network: str) -> None:
    assert network_of(address) == network


@pytest.mark.parametrize(
    ("settings", "address", "secure"),
    [
        ({}, "127.0.0.1", False),
        ({"trusted_proxies": ["192.0.2.1"]}, "127.0.0.1", False),
        ({"trusted_proxies": ["127.0.0.0/8"]}, "203.0.113.9", True),
    ],
)
async def test_address_of_a_client_behind_a_proxy(
    settings: dict[str, Any], address: str, secure: bool, serve: Serve
) -> None:
    hub = Hub(**settings)
    seen: asyncio.Queue[tuple[str | None, bool]] = asyncio.Queue()

    @hub.use
    def note(socket: Socket) -> None:
        seen.put_nowait((socket.handshake.address, socket.handshake.secure))

    server = await serve(hub)
    headers = {"X-Forwarded-For": "1.1.1.1, 203.0.113.9", "X-Forwarded-Proto": "https"}
    async with (
        httpx.AsyncClient(trust_env=False, verify=False) as http,
        http.stream("GET", f"{server.url}/events", headers=headers) as stream,
    ):
        assert stream.status_code == 200
        assert seen.get_nowait() == (address, secure)
