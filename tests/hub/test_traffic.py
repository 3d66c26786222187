"""What a hub tells its operator: lines of the log, and counts by reason."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from crossband import ConnectionRefused, Handshake, Hub, Identity, Socket, Unauthorized
from crossband.hub.traffic import MOST_REASONS, OTHER, Notices, Traffic
from tests.clients import NewClient
from tests.clients.base import WAIT, Refused
from tests.conftest import Serve

KEY = "the-only-key"
ORIGIN = "https://elsewhere.example"


@pytest.fixture(params=[True, False], ids=["lane", "asgi"])
def lane(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def lines(caplog: pytest.LogCaptureFixture, beginning: str) -> list[str]:
    """Return what Crossband logged that begins so."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "crossband" and record.getMessage().startswith(beginning)
    ]


async def authenticate(handshake: Handshake) -> Identity:
    (name,) = handshake.query.get("token", [""])
    if name != "secret-of-ada":
        raise Unauthorized("No such token")
    return Identity("ada")


@pytest.mark.parametrize(
    ("kind", "door"),
    [
        ("websocket", "websocket"),
        ("sse", "sse"),
        pytest.param("socket.io-client polling", "polling", marks=pytest.mark.node),
    ],
)
async def test_connect_and_disconnect_are_logged_with_the_client_and_the_reason(
    kind: str,
    door: str,
    lane: bool,
    serve: Serve,
    new_client: NewClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "crossband")
    hub = Hub()
    left = asyncio.Event()

    @hub.on("disconnect")
    def disconnect(socket: Socket, reason: str) -> None:
        left.set()

    server = await serve(hub, lane=lane)
    client = new_client(kind)
    await client.connect(server.url)
    who = f"{client.sid} in '/', {door} from 127.0.0.1"
    assert lines(caplog, "connected") == [f"connected {who}, new"]
    (socket,) = hub.sockets.values()
    await socket.disconnect(close=True)
    async with asyncio.timeout(WAIT):
        await left.wait()
    assert lines(caplog, "disconnected") == [f"disconnected {who}: server namespace disconnect"]
    assert hub.status()["disconnects"] == {"server namespace disconnect": 1}
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    assert socket.session not in caplog.text


async def test_line_of_a_connect_names_the_user_and_how_it_resumed(
    lane: bool, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "crossband")
    hub = Hub(authenticate=authenticate)
    server = await serve(hub, lane=lane)
    url = server.url.replace("http", "ws", 1) + "/ws?token=secret-of-ada"
    for query in ("", "&session=my-own-session-key&lastEventId=unheard-of"):
        async with connect(url + query, proxy=None) as websocket:
            await websocket.recv()
    first, second = lines(caplog, "connected")
    assert first.endswith("websocket from 127.0.0.1, user 'ada', new")
    assert second.endswith("user 'ada', gap: unknown")
    assert hub.status()["gaps"]["unknown"] == 1
    assert "secret-of-ada" not in caplog.text
    assert "my-own-session-key" not in caplog.text


async def test_nothing_is_formatted_for_a_level_that_is_off(
    serve: Serve, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "crossband")
    server = await serve(Hub())
    await new_client("websocket").connect(server.url)
    assert not caplog.records


@pytest.mark.node
async def test_refused_client_is_logged_and_counted_by_its_code(
    lane: bool, serve: Serve, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "crossband")
    hub = Hub()

    @hub.use
    def nobody(socket: Socket) -> None:
        raise ConnectionRefused("Not today", code="closed_today")

    server = await serve(hub, lane=lane)
    for kind in ("websocket", "sse", "socket.io-client polling"):
        with pytest.raises(Refused):
            await new_client(kind).connect(server.url)
    assert hub.status()["refusals"]["closed_today"] == 3
    assert [line.partition(", ")[2] for line in lines(caplog, "refused a client")] == [
        f"{door} from 127.0.0.1: closed_today, 'Not today'"
        for door in ("websocket", "sse", "polling")
    ]
    assert not lines(caplog, "connected")


async def test_refused_origin_is_logged_once_and_counted_on_every_door(
    lane: bool, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(api_keys=[KEY])
    server = await serve(hub, lane=lane)
    headers = {"Origin": ORIGIN}
    async with httpx.AsyncClient(
        timeout=WAIT, trust_env=False, headers=headers, verify=False
    ) as http:
        for path in ("/events", "/api/status", "/socket.io/?EIO=4&transport=polling"):
            assert (await http.get(server.url + path)).status_code == 403
    with pytest.raises(InvalidStatus):
        await connect(server.url.replace("http", "ws", 1) + "/ws", origin=ORIGIN, proxy=None)  # type: ignore[arg-type]
    assert hub.status()["refusals"]["origin_not_allowed"] == 4
    (line,) = lines(caplog, "refused pages")
    assert repr(ORIGIN) in line
    assert "from 127.0.0.1" in line


@pytest.mark.parametrize("header", ["X-API-Key", "Authorization"])
async def test_wrong_api_key_is_logged_without_it_and_counted(
    header: str, lane: bool, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(api_keys=[KEY])
    server = await serve(hub, lane=lane)
    shown = "Bearer a-wrong-key" if header == "Authorization" else "a-wrong-key"
    async with httpx.AsyncClient(timeout=WAIT, trust_env=False, verify=False) as http:
        for headers in ({header: shown}, {header: shown}, {}):
            answer = await http.post(
                f"{server.url}/api/broadcast", json={"event": "x"}, headers=headers
            )
            assert answer.status_code == 401
    refusals = hub.status()["refusals"]
    assert (refusals["api_key"], refusals["unauthorized"]) == (2, 1)
    assert lines(caplog, "refused a wrong API key") == [
        "refused a wrong API key that 127.0.0.1 showed to the HTTP API"
    ]
    assert "a-wrong-key" not in caplog.text


async def test_refused_host_is_counted(serve: Serve) -> None:
    hub = Hub(allowed_hosts=["chat.example"])
    server = await serve(hub)
    async with httpx.AsyncClient(timeout=WAIT, trust_env=False, verify=False) as http:
        assert (await http.get(f"{server.url}/api/status")).status_code == 400
    assert hub.status()["refusals"]["host_not_allowed"] == 1


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        ("open", {}, 200),
        ("key", {}, 401),
        ("key", {"X-API-Key": "wrong"}, 401),
        ("key", {"X-API-Key": KEY}, 200),
        ("key", {"Authorization": f"Bearer {KEY}"}, 200),
        ("off", {"X-API-Key": KEY}, 404),
    ],
)
async def test_status_is_for_those_whom_the_setting_names(
    status: Any, headers: dict[str, str], expected: int, serve: Serve
) -> None:
    hub = Hub(status=status, api_keys=[KEY])
    server = await serve(hub)
    async with httpx.AsyncClient(
        timeout=WAIT, trust_env=False, headers=headers, verify=False
    ) as http:
        answer = await http.get(f"{server.url}/api/status")
        assert answer.status_code == expected
        assert (await http.head(f"{server.url}/api/status")).status_code == expected
    assert ("clients" in answer.json()) == (expected == 200)
    assert hub.status()["clients"]["total"] == 0


def test_notice_is_due_once_for_each_key_within_the_time() -> None:
    notices = Notices(every=60, most=2)
    assert notices.due("a", 0)
    assert not notices.due("a", 59)
    assert notices.due("b", 59)
    # Full: no third key until the first is forgotten.
    assert not notices.due("c", 59)
    assert notices.due("c", 60)
    assert not notices.due("a", 61)
    assert notices.due("a", 119)


def test_codes_that_an_application_makes_up_are_bounded() -> None:
    traffic = Traffic()
    for number in range(3 * MOST_REASONS):
        traffic.refused_request(f"code-{number}")
    assert len(traffic.refusals) == MOST_REASONS + 1
    assert traffic.refusals.total() == 3 * MOST_REASONS
    assert traffic.refusals[OTHER] > MOST_REASONS
