"""Auth as clients meet it, the same on every door, on the lane and off it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import json
import logging
import socket
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from crossband import (
    ConnectionRefused,
    Handshake,
    Hub,
    Identity,
    JWTAuth,
    Rights,
    Socket,
    Unauthorized,
    bearer_token,
    rooms_claim,
)
from crossband.auth.jwt import REASONS
from tests.clients import CLIENTS, Client, EventFailed, EventStreamClient, NewClient, Refused
from tests.clients.base import WAIT
from tests.clients.node import NodeRunner, OfficialClient
from tests.clients.raw import Polling, engine_url
from tests.clients.websocket import WebSocketClient
from tests.conftest import Serve

SECRET = "a secret of thirty-two bytes, or more"
EXAMPLE = Path(__file__).parents[1] / "examples/jwt_app.py"
KEY = "the key of whom may publish"

pytestmark = [pytest.mark.node, pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")]
every_door = pytest.mark.parametrize("kind", CLIENTS)


@pytest.fixture(params=[True, False], ids=["lane", "asgi"])
def lane(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def token(user: str = "alice", *, seconds: float = 60, secret: str = SECRET, **claims: Any) -> str:
    said = {"sub": user, "exp": int(time.time() + seconds), "aud": "chat", **claims}
    return jwt.encode(said, secret, algorithm="HS256")


async def fleeting(handshake: Handshake) -> Identity:
    """Know tokens such as `alice 0.5 news,team-*`: who, for how many seconds, which rooms."""
    shown = bearer_token(handshake)
    if shown is None:
        raise Unauthorized("Who are you?", reason="missing")
    user, seconds, *rooms = shown.split(" ")
    patterns = tuple(rooms[0].split(",")) if rooms else ()
    return Identity(user, expires=time.time() + float(seconds), rights=Rights(patterns, patterns))


def member_hub(**options: Any) -> Hub:
    options = {"authenticate": fleeting, "authorize": rooms_claim, **options}
    hub = Hub(**options)

    @hub.on("whoami")
    async def whoami(socket: Socket) -> str | None:
        return socket.identity.user if socket.identity is not None else None

    @hub.on("room:join")
    async def join(socket: Socket, room: str) -> list[str]:
        await socket.subscribe(room)
        return sorted(socket.rooms - {socket.id})

    @hub.on("house:join")
    async def join_house(socket: Socket) -> None:
        await socket.join("house")

    @hub.on("rooms")
    async def rooms(socket: Socket) -> list[str]:
        return sorted(socket.rooms - {socket.id})

    return hub


async def ended(client: Client) -> str:
    """Wait for the end of a client's connection; return what it knows of it."""
    async with asyncio.timeout(WAIT):
        await client.gone.wait()
    return client.disconnect_reason if isinstance(client, OfficialClient) else client.farewell


def assert_ended_with(client: Client, said: str, code: int) -> None:
    if isinstance(client, WebSocketClient):
        assert said.startswith(str(code))
    elif isinstance(client, EventStreamClient):
        assert said == "end of stream"
    elif isinstance(client, OfficialClient):
        assert said == "io server disconnect"
    else:
        assert said == "server disconnect"


async def at_every_door(trial: Callable[[str], Coroutine[Any, Any, None]]) -> None:
    """Run what waits for a token to expire at all doors side by side."""
    async with asyncio.TaskGroup() as trials:
        for kind in CLIENTS:
            trials.create_task(trial(kind), name=kind)


# Who comes in.


@every_door
async def test_only_good_tokens_come_in(
    kind: str, lane: bool, serve: Serve, new_client: NewClient
) -> None:
    hub = member_hub(authenticate=JWTAuth(SECRET, audience="chat"))
    server = await serve(hub, lane=lane)
    swapped = jwt.encode({"sub": "alice"}, SECRET, algorithm="HS512")
    for auth, reason in (
        ({}, "missing"),
        ({"token": "made up"}, "malformed"),
        ({"token": token(secret=SECRET[::-1])}, "signature"),
        ({"token": token(seconds=-5)}, "expired"),
        ({"token": token(aud="others")}, "audience"),
        ({"token": swapped}, "algorithm"),
        ({"token": token(nbf=2**40)}, "not_yet_valid"),
    ):
        stranger = new_client(kind)
        with pytest.raises(Refused, match=REASONS[reason]) as refusal:
            await stranger.connect(server.url, auth=auth)
        if kind in ("websocket", "sse"):
            assert refusal.value.status == 401
        else:
            error = {"code": "unauthorized", "error": REASONS[reason], "reason": reason}
            assert refusal.value.data == error
        await stranger.close()
    assert not hub.sockets
    alice = new_client(kind)
    await alice.connect(server.url, auth={"token": token(role="admin")})
    assert await alice.call("whoami") == "alice"
    (socket,) = hub.sockets_of("alice")
    assert socket.identity is not None
    assert socket.identity.claims["role"] == "admin"
    await alice.close()


@every_door
async def test_anonymous_clients_may_be_let_in(
    kind: str, serve: Serve, new_client: NewClient
) -> None:
    hub = member_hub(authenticate=JWTAuth(SECRET, anonymous=True, audience="chat"))
    server = await serve(hub)
    nobody = new_client(kind)
    await nobody.connect(server.url)
    assert await nobody.call("whoami") is None
    with pytest.raises(EventFailed, match="Not allowed"):
        await nobody.call("room:join", "news")
    with pytest.raises(Refused):
        await new_client(kind).connect(server.url, auth={"token": "made up"})


@every_door
async def test_authenticate_that_fails_lets_nobody_in(
    kind: str, serve: Serve, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    def authenticate(handshake: Handshake) -> Any:
        shown = bearer_token(handshake)
        if shown == "string":
            return "alice"
        raise LookupError(f"the database does not know token={shown}")

    server = await serve(member_hub(authenticate=authenticate))
    for shown in ("string", "my-secret-token"):
        with pytest.raises(Refused, match="Internal server error"):
            await new_client(kind).connect(server.url, auth={"token": shown})
    assert "authenticate must return an Identity or None, not str" in caplog.text
    assert "the database does not know token=…" in caplog.text
    assert "my-secret-token" not in caplog.text


# Until when.


async def test_connection_ends_with_its_token_and_resumes_with_a_new_one(
    lane: bool, serve: Serve, new_client: NewClient
) -> None:
    async def trial(kind: str) -> None:
        hub = member_hub(token_warning=1.0)
        reasons: asyncio.Queue[str] = asyncio.Queue()

        @hub.on("disconnect")
        async def disconnect(socket: Socket, reason: str) -> None:
            reasons.put_nowait(reason)

        server = await serve(hub, lane=lane)
        client = new_client(kind)
        await client.connect(server.url, auth={"token": "alice 60 news"})
        await client.call("room:join", "news")
        await hub.to("news").emit("news", 1)
        await client.next_event("news")
        await client.settled()
        await client.call("token:refresh", "alice 1.5 news")
        warning = (await client.next_event("token:expiring")).data
        assert 0 < warning["in"] <= 1.0
        assert abs(warning["expires"] - time.time()) < WAIT
        error = await client.next_error()
        assert error == {
            "code": "unauthorized",
            "error": "The token has expired",
            "reason": "expired",
        }
        assert_ended_with(client, await ended(client), 4401)
        assert await asyncio.wait_for(reasons.get(), WAIT) == "token expired"
        assert not hub.sockets
        await hub.to("news").emit("news", 2)
        again = new_client(kind)
        await again.connect(
            server.url,
            auth={"token": "alice 60 news"},
            session=client.session,
            offset=client.offset,
        )
        assert (await again.next_event("news")).data == 2
        assert again.sid == client.sid
        assert not again.gaps

    await at_every_door(trial)


async def test_token_is_refreshed_in_place(lane: bool, serve: Serve, new_client: NewClient) -> None:
    async def trial(kind: str) -> None:
        hub = member_hub(token_warning=0.2)
        server = await serve(hub, lane=lane)
        client, other = new_client(kind), new_client(kind)
        await client.connect(server.url, auth={"token": "alice 60 news,board"})
        await client.call("room:join", "news")
        await client.call("room:join", "board")
        await client.call("house:join")
        with pytest.raises(EventFailed) as failure:
            await client.call("token:refresh", "mallory 60")
        assert failure.value.error["reason"] == "user"
        with pytest.raises(EventFailed) as failure:
            await client.call("token:refresh", 7)
        assert failure.value.code == "invalid_message"
        with pytest.raises(EventFailed) as failure:
            await client.call("token:refresh", {"token": "alice -1"})
        assert failure.value.error["reason"] == "expired"
        await other.connect(server.url, auth={"token": "bob 60"})
        await client.call("token:refresh", "alice 4 news,board")
        await other.call("token:refresh", "bob 4")
        answer = await client.call("token:refresh", {"token": "alice 60 news"})
        assert abs(answer["expires"] - time.time() - 60) < WAIT
        assert answer["left"] == ["board"]
        # What the application decided by itself stays.
        assert await client.call("rooms") == ["house", "news"]
        with pytest.raises(EventFailed) as failure:
            await client.call("room:join", "board")
        assert failure.value.error["room"] == "board"
        # Longer than the first token was good for.
        await ended(other)
        assert await client.call("whoami") == "alice"
        assert "token:expiring" not in [event.name for event in client.log]

    await at_every_door(trial)


async def test_token_is_refreshed_only_where_there_are_tokens(
    serve: Serve, new_client: NewClient
) -> None:
    hub = Hub()
    server = await serve(hub)
    client = new_client("websocket")
    await client.connect(server.url)
    with pytest.raises(EventFailed) as failure:
        await client.call("token:refresh", "alice 60")
    assert failure.value.code == "invalid_message"


async def test_event_source_stops_when_its_token_has_expired(
    serve: Serve, node: NodeRunner
) -> None:
    # By token: good for a while from when it is first shown.
    good_until: dict[str | None, float] = {}

    def authenticate(handshake: Handshake) -> Identity:
        expires = good_until.setdefault(bearer_token(handshake), time.time() + 1)
        return Identity("alice", expires=expires)

    server = await serve(member_hub(authenticate=authenticate, retry=0.05))
    notices: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    number = node.new_client(notices.put_nowait)
    await node.ask(
        "open",
        client=number,
        kind="eventsource",
        url=f"{server.url}/events?token=mine",
        events=["welcome"],
    )
    assert (await node.ask("connect", client=number))["connected"]
    seen: list[dict[str, Any]] = []
    async with asyncio.timeout(WAIT):
        while not seen or not seen[-1].get("closed"):
            seen.append(await notices.get())
    # The end of the stream, and the 401 that its return was answered: after that, nothing.
    assert [notice["notice"] for notice in seen].count("message") == 1
    await node.ask("close", client=number)
    node.forget(number)


async def test_plain_namespace_ends_with_the_token(lane: bool, serve: Serve) -> None:
    hub = member_hub()
    hub.of("/echo", plain=True)
    server = await serve(hub, lane=lane)
    url = server.url.replace("http", "ws") + "/ws/echo?token=alice+1"
    async with connect(url, proxy=None) as socket:
        assert json.loads(await socket.recv())["reason"] == "expired"
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 4401


async def until_closed(socket: ClientConnection) -> list[str]:
    """Return all that a WebSocket still brings."""
    said = []
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(WAIT):
            while True:
                said.append(str(await socket.recv()))
    return said


async def test_expiry_waits_for_nobody(serve: Serve) -> None:
    # The namespace of a Socket.IO connection ends by itself, and the others go on.
    hub = member_hub()
    hub.of("/other")
    server = await serve(hub)
    async with connect(engine_url(server.url), proxy=None) as socket:
        assert str(await socket.recv()).startswith("0{")
        await socket.send('40{"token":"alice 1"}')
        await socket.send('40/other,{"token":"bob 2"}')
        said = await until_closed(socket)
        assert said.index("41") < said.index("41/other,")
        assert socket.close_code == 4401


# Revocation, and whose session it is.


@every_door
async def test_revoked_user_is_gone_from_every_door(
    kind: str, lane: bool, serve: Serve, new_client: NewClient
) -> None:
    hub = member_hub()
    server = await serve(hub, lane=lane)
    alice, tablet, bob = new_client(kind), new_client("websocket"), new_client(kind)
    await alice.connect(server.url, auth={"token": "alice 60 news"})
    await tablet.connect(server.url, auth={"token": "alice 60"})
    await bob.connect(server.url, auth={"token": "bob 60"})
    await hub.emit("news", 1)
    await alice.next_event("news")
    assert await hub.revoke("nobody") == 0
    assert await hub.revoke("alice") == 2
    for client in (alice, tablet):
        assert (await client.next_error())["reason"] == "revoked"
        assert_ended_with(client, await ended(client), 4403)
    assert await bob.call("whoami") == "bob"
    assert not hub.sockets_of("alice")
    again = new_client(kind)
    if kind == "sse":
        # An EventSource that comes back by itself is told to stop.
        query = {"token": "alice 60", "session": alice.session or ""}
        async with httpx.AsyncClient(trust_env=False, verify=False) as http:
            answer = await http.get(f"{server.url}/events", params=query)
        assert answer.status_code == 204
        return
    await again.connect(
        server.url, auth={"token": "alice 60"}, session=alice.session, offset=alice.offset
    )
    assert (await again.next_gap())["reason"] == "session"
    assert again.sid != alice.sid


async def test_older_tokens_of_a_revoked_user_are_refused(
    serve: Serve, new_client: NewClient
) -> None:
    hub = member_hub(authenticate=JWTAuth(SECRET, audience="chat", leeway=30))
    server = await serve(hub)
    now = int(time.time())
    client = new_client("websocket")
    await client.connect(server.url, auth={"token": token(iat=now)})
    assert await hub.revoke("alice") == 1
    await ended(client)
    with pytest.raises(Refused, match="revoked"):
        await new_client("websocket").connect(server.url, auth={"token": token(iat=now)})
    # A newer one, of a clock that is ahead, and one that does not say.
    later: tuple[dict[str, Any], ...] = ({"iat": now + 20}, {})
    for claims in later:
        await new_client("websocket").connect(server.url, auth={"token": token(**claims)})


@every_door
async def test_session_is_resumed_by_its_user_only(
    kind: str, lane: bool, serve: Serve, new_client: NewClient
) -> None:
    hub = member_hub()
    server = await serve(hub, lane=lane)
    alice = new_client(kind)
    await alice.connect(server.url, auth={"token": "alice 60 diary"})
    await alice.call("room:join", "diary")
    await hub.to("diary").emit("diary", "first")
    await alice.next_event("diary")
    sid, session, offset = alice.sid, alice.session, alice.offset
    await alice.cut()
    await hub.to("diary").emit("diary", "second")
    mallory = new_client(kind)
    await mallory.connect(
        server.url, auth={"token": "mallory 60 *"}, session=session, offset=offset
    )
    assert (await mallory.next_gap())["reason"] == "session"
    assert mallory.sid != sid
    assert await mallory.call("rooms") == []
    assert mallory.data_of("diary") == []
    # And it is still there for whom it belongs to.
    again = new_client(kind)
    await again.connect(
        server.url, auth={"token": "alice 60 diary"}, session=session, offset=offset
    )
    assert (await again.next_event("diary")).data == "second"
    assert again.sid == sid
    assert await mallory.call("whoami") == "mallory"


# What.


@every_door
async def test_rooms_are_asked_about_again_before_the_replay(
    kind: str, serve: Serve, new_client: NewClient
) -> None:
    hub = member_hub()
    server = await serve(hub)
    client = new_client(kind)
    await client.connect(server.url, auth={"token": "alice 60 news,board"})
    assert await client.call("room:join", "news") == ["news"]
    assert await client.call("room:join", "board") == ["board", "news"]
    await client.call("house:join")
    await hub.emit("all", 0)
    await client.next_event("all")
    sid, session, offset = client.sid, client.session, client.offset
    await client.cut()
    for number in range(3):
        for room in ("board", "house", "news"):
            await hub.to(room).emit("said", f"{room} {number}")
    again = new_client(kind)
    await again.connect(server.url, auth={"token": "alice 60 news"}, session=session, offset=offset)
    for _ in range(6):
        await again.next_event("said")
    assert again.sid == sid
    assert set(again.data_of("said")) == {f"{r} {n}" for r in ("house", "news") for n in range(3)}
    assert await again.call("rooms") == ["house", "news"]


@pytest.mark.parametrize("kind", ["websocket", "sse"])
async def test_rooms_of_the_address_are_asked_about(
    kind: str, lane: bool, serve: Serve, new_client: NewClient
) -> None:
    hub = member_hub()
    server = await serve(hub, lane=lane)
    auth = {"token": "alice 60 team-*"}
    with pytest.raises(Refused, match="Not allowed to subscribe to the room 'board'") as refusal:
        await new_client(kind).connect(server.url, auth=auth, rooms=["team-1", "board"])
    assert refusal.value.status == 403
    assert not hub.sockets
    client = new_client(kind)
    await client.connect(server.url, auth=auth, rooms=["team-1", "team-2"])
    assert await client.call("rooms") == ["team-1", "team-2"]


async def test_authorize_may_be_async_and_fails_closed(
    serve: Serve, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def authorize(identity: Identity | None, action: str, room: str | None) -> bool:
        await asyncio.sleep(0)
        if room == "broken":
            raise LookupError("no database")
        return identity is not None and (identity.user, action, room) == ("al", "subscribe", "a")

    hub = member_hub(authorize=authorize)
    server = await serve(hub)
    client = new_client("websocket")
    await client.connect(server.url, auth={"token": "al 60"}, rooms=["a"])
    with pytest.raises(EventFailed, match="Not allowed"):
        await client.call("room:join", "b")
    with pytest.raises(EventFailed, match="Internal server error"):
        await client.call("room:join", "broken")
    assert await client.call("rooms") == ["a"]
    with pytest.raises(Refused, match="Internal server error"):
        await new_client("sse").connect(server.url, auth={"token": "al 60"}, rooms=["broken"])
    assert "no database" in caplog.text


async def test_client_that_is_let_in_while_it_is_revoked_goes(
    lane: bool, serve: Serve, new_client: NewClient
) -> None:
    hub = member_hub()
    examined, goes_on = asyncio.Event(), asyncio.Event()

    @hub.use
    async def examine(socket: Socket) -> None:
        examined.set()
        await goes_on.wait()

    server = await serve(hub, lane=lane)
    client = new_client("websocket")
    connecting = asyncio.create_task(client.connect(server.url, auth={"token": "alice 60"}))
    await examined.wait()
    assert await hub.revoke("alice") == 0
    goes_on.set()
    await connecting
    assert (await client.next_error())["reason"] == "revoked"
    assert_ended_with(client, await ended(client), 4403)
    await new_client("websocket").connect(server.url, auth={"token": "alice 60"})


async def test_session_of_a_user_who_is_revoked_while_it_is_resumed_is_gone(
    lane: bool, serve: Serve, new_client: NewClient
) -> None:
    hub = member_hub()
    examined, goes_on = asyncio.Event(), asyncio.Event()
    client = new_client("websocket")

    @hub.use
    async def examine(socket: Socket) -> None:
        if socket.handshake.query.get("session") and not goes_on.is_set():
            examined.set()
            await goes_on.wait()
            raise ConnectionRefused("not now")

    server = await serve(hub, lane=lane)
    await client.connect(server.url, auth={"token": "alice 60"})
    await client.cut()
    coming_back: dict[str, Any] = {
        "auth": {"token": "alice 60"},
        "session": client.session,
        "offset": client.offset,
    }
    resuming = asyncio.create_task(new_client("websocket").connect(server.url, **coming_back))
    await examined.wait()
    await hub.revoke("alice")
    goes_on.set()
    with pytest.raises(Refused, match="not now"):
        await resuming
    again = new_client("websocket")
    await again.connect(server.url, **coming_back)
    assert (await again.next_gap())["reason"] == "session"
    assert again.sid != client.sid


async def test_anonymous_client_does_not_become_somebody(
    serve: Serve, new_client: NewClient
) -> None:
    hub = member_hub(authenticate=JWTAuth(SECRET, anonymous=True, audience="chat"))
    server = await serve(hub)
    client = new_client("websocket")
    await client.connect(server.url)
    with pytest.raises(EventFailed, match="Connect again to be somebody"):
        await client.call("token:refresh", token())
    assert await client.call("whoami") is None


async def test_authenticate_that_hangs_lets_nobody_in(
    lane: bool, serve: Serve, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def authenticate(handshake: Handshake) -> Identity:
        await asyncio.Event().wait()
        raise AssertionError

    hub = member_hub(authenticate=authenticate, limits={"handshake_time": 0.1})
    server = await serve(hub, lane=lane)
    with pytest.raises(InvalidStatus) as refused:
        await connect(ws(server.url), proxy=None)
    assert refused.value.response.status_code == 503
    with pytest.raises(Refused, match="Handshake timed out"):
        await new_client("sse").connect(server.url)
    # Of the server's own logger: plain uvicorn misses the handshake that was refused.
    records = [record for record in caplog.records if record.name == "crossband"]
    said = [(record.getMessage(), record.exc_info) for record in records]
    assert said == [("authenticate took more than 0.1 s: the client is refused", None)] * 2


async def test_timeout_within_authenticate_is_its_own_failure(
    serve: Serve, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def authenticate(handshake: Handshake) -> Identity:
        raise TimeoutError("no database")

    server = await serve(member_hub(authenticate=authenticate))
    with pytest.raises(Refused, match="Internal server error"):
        await new_client("sse").connect(server.url)
    assert "no database" in caplog.text


# Ways to show it.


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=WAIT, verify=False) as client:
        yield client


def ws(url: str) -> str:
    return url.replace("http", "ws", 1) + "/ws"


async def test_websocket_shows_its_token_in_every_way(lane: bool, serve: Serve) -> None:
    auth = JWTAuth(SECRET, audience="chat", cookie="session_token")
    server = await serve(member_hub(authenticate=auth), lane=lane)
    shown = token()
    header = {"Authorization": f"Bearer {shown}"}
    cookie = {"Cookie": f"theme=dark; session_token={shown}"}
    offered = [Subprotocol("crossband"), Subprotocol(f"bearer.{shown}")]
    ways: list[tuple[str, dict[str, Any]]] = [
        (f"?token={shown}", {}),
        ("", {"additional_headers": header}),
        ("", {"additional_headers": cookie}),
        ("", {"subprotocols": offered}),
    ]
    for query, options in ways:
        async with connect(ws(server.url) + query, proxy=None, **options) as socket:
            assert json.loads(await socket.recv())["type"] == "welcome"
            answered = "crossband" if "subprotocols" in options else None
            assert socket.subprotocol == answered
    # Refused over HTTP, and told how to ask.
    bad = [Subprotocol("crossband"), Subprotocol("bearer.bad")]
    with pytest.raises(InvalidStatus) as refusal:
        await connect(ws(server.url), proxy=None, subprotocols=bad)
    response = refusal.value.response
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert json.loads(response.body or b"") == {
        "type": "error",
        "code": "unauthorized",
        "error": "The token cannot be read",
        "reason": "malformed",
    }


@pytest.mark.parametrize(
    ("origins", "origin", "status"),
    [
        ((), None, 200),
        ((), "same", 200),
        ((), "https://evil.example", 403),
        (("https://good.example",), "https://good.example", 200),
        # Let in, and not by the cookie of whoever sits there.
        (("*",), "https://evil.example", 401),
        (("*",), "same", 200),
    ],
)
async def test_cookie_counts_for_pages_of_known_origins(
    origins: tuple[str, ...], origin: str | None, status: int, serve: Serve, http: httpx.AsyncClient
) -> None:
    auth = JWTAuth(SECRET, audience="chat", cookie="session_token")
    server = await serve(member_hub(authenticate=auth, cors_origins=origins))
    headers = {"Cookie": f"session_token={token()}"}
    if origin is not None:
        headers["Origin"] = server.url if origin == "same" else origin
    assert (await http.head(f"{server.url}/events", headers=headers)).status_code == status
    if status == 200:
        async with connect(ws(server.url), proxy=None, additional_headers=headers) as socket:
            assert json.loads(await socket.recv())["type"] == "welcome"
    else:
        with pytest.raises(InvalidStatus) as refusal:
            await connect(ws(server.url), proxy=None, additional_headers=headers)
        assert refusal.value.response.status_code == status


async def test_socketio_shows_its_token_in_header_or_query(
    lane: bool, serve: Serve, http: httpx.AsyncClient
) -> None:
    server = await serve(member_hub(), lane=lane)
    session = Polling(http, server.url)
    session.headers["Authorization"] = "Bearer alice 60"
    await session.connect()
    await session.close()
    async with connect(engine_url(server.url, token="alice 60"), proxy=None) as socket:
        await socket.recv()
        await socket.send("40")
        assert str(await socket.recv()).startswith('40{"sid"')


async def test_stream_and_its_way_back_are_checked(
    lane: bool, serve: Serve, http: httpx.AsyncClient, new_client: NewClient
) -> None:
    server = await serve(member_hub(), lane=lane)
    for method in ("GET", "HEAD"):
        answer = await http.request(method, f"{server.url}/events")
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    client = new_client("sse")
    await client.connect(server.url, auth={"token": "alice 60"})
    url = f"{server.url}/events/{client.sid}"
    session = {"X-Crossband-Session": client.session or ""}
    body = {"type": "whoami"}
    for headers, query, status in (
        (session, {}, 200),
        ({**session, "Authorization": "Bearer alice 60"}, {}, 200),
        # Another's business, a proxy's for example.
        ({**session, "Authorization": "Basic YTpi"}, {}, 200),
        (session, {"token": "alice 60"}, 200),
        ({}, {"token": "alice 60"}, 401),
        ({**session, "Authorization": "Bearer mallory 60"}, {}, 401),
        ({**session, "Authorization": "Bearer alice -1"}, {}, 401),
        (session, {"token": "mallory 60"}, 401),
    ):
        answer = await http.post(url, params=query, headers=headers, json=body)
        assert answer.status_code == status, (headers, query, answer.text)
        if status == 401:
            assert answer.json()["code"] == "unauthorized"


async def test_token_that_may_publish_broadcasts(
    lane: bool, serve: Serve, http: httpx.AsyncClient, new_client: NewClient
) -> None:
    server = await serve(member_hub(api_keys=[KEY]), lane=lane)
    client = new_client("websocket")
    await client.connect(server.url, auth={"token": "alice 60 news"}, rooms=["news"])

    async def publish(shown: str, room: str | None, header: str = "Authorization") -> Any:
        value = f"Bearer {shown}" if header == "Authorization" else shown
        body = {"event": "news", "data": shown, **({} if room is None else {"room": room})}
        return await http.post(f"{server.url}/api/broadcast", json=body, headers={header: value})

    for shown, room, status in (
        ("bob 60 news", "news", 200),
        ("bob 60 *", None, 200),
        ("bob 60 news", None, 403),
        ("bob 60 news", "board", 403),
        ("bob -1 news", "news", 401),
        (KEY, None, 200),
    ):
        answer = await publish(shown, room)
        assert answer.status_code == status, (shown, answer.text)
    assert (await publish(KEY, None, "X-API-Key")).status_code == 200
    answer = await publish(KEY + "!", None, "X-API-Key")
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    for said in ("bob 60 news", "bob 60 *", KEY, KEY):
        assert (await client.next_event("news")).data == said


async def test_token_publishes_nothing_where_nobody_authorizes(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    server = await serve(member_hub(authorize=None))
    answer = await http.post(
        f"{server.url}/api/broadcast",
        json={"event": "news"},
        headers={"Authorization": "Bearer alice 60 *"},
    )
    assert (answer.status_code, answer.json()["code"]) == (403, "refused")


# What a stranger costs.


async def test_clients_with_tokens_leave_nothing_behind(
    lane: bool, serve: Serve, new_client: NewClient
) -> None:
    hub = member_hub()
    sockets: weakref.WeakSet[Socket] = weakref.WeakSet()
    left = asyncio.Queue[None]()

    @hub.on("connect")
    async def connected(socket: Socket) -> None:
        sockets.add(socket)

    @hub.on("disconnect")
    async def disconnect(socket: Socket, reason: str) -> None:
        left.put_nowait(None)

    server = await serve(hub, lane=lane)
    for number in range(20):
        client = new_client(("websocket", "sse", "python-socketio")[number % 3])
        await client.connect(server.url, auth={"token": f"user{number % 4} 60 news"})
        await client.call("room:join", "news")
        await client.call("token:refresh", f"user{number % 4} 90 news")
        if number % 2:
            await hub.revoke(f"user{number % 4}")
        else:
            await client.cut()
        async with asyncio.timeout(WAIT):
            await left.get()
        await client.close()
    assert not [user for user in range(4) if hub.sockets_of(f"user{user}")]
    async with asyncio.timeout(WAIT):
        while sockets:
            # Until the connections' last callbacks have run.
            await asyncio.sleep(0)
            gc.collect()


async def test_one_heartbeat_before_auth(lane: bool, serve: Serve) -> None:
    settings = {"ping_interval": 0.05, "limits": {"handshake_time": 0.4}}
    server = await serve(member_hub(**settings), lane=lane)
    for opening in ("", "3", "40"):
        async with connect(engine_url(server.url), proxy=None) as socket:
            if opening:
                await socket.send(opening)
            said = await until_closed(socket)
        # The session's own, which nobody answers: there is never a second one.
        assert said.count("2") == 1, said
        others = [packet[:2] for packet in said[1:] if packet != "2"]
        assert others == (["44"] if opening == "40" else []), said
    async with connect(engine_url(server.url), proxy=None) as socket:
        await socket.recv()
        await socket.send('40{"token":"alice 60"}')
        assert str(await socket.recv()).startswith("40{")
        for _ in range(3):
            assert await socket.recv() == "2"
            await socket.send("3")


@pytest.mark.parametrize("access_log", [True, False])
async def test_tokens_are_in_no_log(
    access_log: bool,
    lane: bool,
    serve: Serve,
    http: httpx.AsyncClient,
    new_client: NewClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    hub = member_hub(authenticate=JWTAuth(SECRET, audience="chat"))

    @hub.on("fail")
    async def fail(socket: Socket) -> None:
        raise ValueError(f"no such token: {bearer_token(socket.handshake)}")

    options: dict[str, Any] = {"access_log": access_log, "log_level": "info"}
    server = await serve(hub, lane=lane, **options)
    good, bad = token(), token(seconds=-5)
    for kind in ("websocket", "sse", "socket.io-client websocket"):
        client = new_client(kind)
        await client.connect(server.url, auth={"token": good})
        with pytest.raises(EventFailed, match="Internal server error"):
            await client.call("fail")
        with pytest.raises(Refused):
            await new_client(kind).connect(server.url, auth={"token": bad})
    await http.post(f"{server.url}/api/broadcast?token={good}", json={"event": "a"})
    lines = [
        record.getMessage() + (record.exc_text or "")
        for record in caplog.records
        # The clients' own say what they send.
        if not record.name.startswith(("httpx", "httpcore", "websockets.client", "socketio"))
    ]
    assert any("no such token: …" in line for line in lines)
    secrets = [part for shown in (good, bad) for part in shown.split(".")[1:]]
    assert not [line for line in lines if any(secret in line for secret in secrets)]


async def test_tokens_are_in_no_log_of_another_server(
    new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hub = member_hub(authenticate=JWTAuth(SECRET, audience="chat"))
    config = uvicorn.Config(hub, log_config=None, log_level="info", lifespan="on")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = asyncio.create_task(server.serve([listening]))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        shown = token()
        for kind in ("websocket", "sse"):
            client = new_client(kind)
            await client.connect(url, auth={"token": shown})
            await client.close()
        server.should_exit = True
        await running
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")]
    # With "?token=…", or no query where our own server ran before in this process.
    assert [line for line in lines if "GET /events" in line]
    assert [line for line in lines if "WebSocket /ws" in line]
    assert not [line for line in lines if shown.split(".")[1] in line]


# The example.


async def test_one_login_is_good_for_every_door(
    serve: Serve, http: httpx.AsyncClient, new_client: NewClient
) -> None:
    spec = importlib.util.spec_from_file_location("jwt_app", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    server = await serve(example.app)

    async def login(user: str, password: str) -> httpx.Response:
        return await http.post(f"{server.url}/login", json={"user": user, "password": password})

    for user, password in (("alice", "builder"), ("alice", "é"), ("mallory", "")):
        assert (await login(user, password)).status_code == 401
    alice = (await login("alice", "wonderland")).json()
    assert alice["expires"] > time.time()
    bob = (await login("bob", "builder")).json()
    listeners: list[Client] = []
    for kind in ("websocket", "sse", "socket.io-client upgrading"):
        stranger = new_client(kind)
        with pytest.raises(Refused, match="No token was shown"):
            await stranger.connect(server.url)
        listener = new_client(kind)
        await listener.connect(server.url, auth={"token": bob["token"]})
        assert await listener.call("room:join", "general") == {"status": "joined"}
        with pytest.raises(EventFailed, match="Not allowed"):
            await listener.call("room:join", "team-1")
        listeners.append(listener)
    speaker = new_client("websocket")
    await speaker.connect(server.url, auth={"token": alice["token"]}, rooms=["team-1"])
    assert await speaker.call("room:message", ["general", "hello"]) == {"status": "sent"}
    for listener in listeners:
        said = (await listener.next_event("room:message")).data
        assert said == {"from": "alice", "text": "hello"}
