"""The SSE door, byte for byte and by independent decoders: the checklist, item by item."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from crossband import ConnectionRefused, EncodeError, Hub, Socket, Unauthorized
from crossband.errors import RateLimited
from crossband.limits import Limits
from crossband.server import Server
from tests.clients import EventStreamClient, NewClient, NodeRunner
from tests.clients.base import WAIT
from tests.conftest import Serve
from tests.lanes import HUBS

SITE = "https://app.example.com"
# Whatever an encoder could get wrong about lines, and must not.
HOSTILE = (
    "a\r\nb\rc\nd\n\ndata: x\nid: 666\nevent: evil\n: "
    "\u2028e\u2029f\x85g\x0bh\x0ci\x1cj \ufeff\x00 end"
)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=WAIT, trust_env=False, verify=False) as client:
        yield client


class Stream:
    """A raw event stream: its response head, and its blocks as text."""

    def __init__(self, response: httpx.Response, chunks: AsyncIterator[bytes]) -> None:
        self.response = response
        self._chunks = chunks
        self._buffer = b""
        self.ended = False

    async def block(self) -> str:
        """Return the next block, comments included, up to its blank line."""
        async with asyncio.timeout(WAIT):
            while b"\n\n" not in self._buffer:
                self._buffer += await anext(self._chunks)
        block, self._buffer = self._buffer.split(b"\n\n", 1)
        return block.decode()

    async def line(self) -> str:
        """Return the next line that is not blank."""
        async with asyncio.timeout(WAIT):
            while b"\n" not in self._buffer.lstrip(b"\n"):
                self._buffer += await anext(self._chunks)
        line, self._buffer = self._buffer.lstrip(b"\n").split(b"\n", 1)
        return line.decode()

    async def event(self) -> dict[str, str]:
        """Return the fields of the next block that holds an event."""
        while True:
            block = await self.block()
            fields: dict[str, str] = {}
            for line in block.split("\n"):
                name, _, value = line.partition(": ")
                if name == "data" and name in fields:
                    fields[name] += "\n" + value
                elif name and not line.startswith(":"):
                    fields[name] = value
            if "data" in fields:
                return fields

    async def welcome(self) -> dict[str, Any]:
        fields = await self.event()
        assert fields["event"] == "welcome"
        welcome = json.loads(fields["data"])
        assert isinstance(welcome, dict)
        return welcome

    async def end(self) -> None:
        """Read to the end of the stream."""
        async with asyncio.timeout(WAIT):
            async for chunk in self._chunks:
                self._buffer += chunk


@asynccontextmanager
async def stream(
    http: httpx.AsyncClient, url: str, headers: Any = None, **params: Any
) -> AsyncIterator[Stream]:
    async with http.stream("GET", url, headers=headers, params=params or None) as response:
        yield Stream(response, response.aiter_raw())


def echo_hub(**settings: Any) -> Hub:
    hub = Hub(**settings)

    @hub.on("echo")
    async def echo(socket: Socket, data: Any) -> Any:
        return data

    @hub.on("number")
    async def number(socket: Socket, value: int) -> int:
        return value

    @hub.on("broken")
    async def broken(socket: Socket) -> None:
        raise RuntimeError("a bug of the app, and none of the client's business")

    return hub


# --- 1, 2: data, names and ids ----------------------------------------------------------------


async def test_no_published_string_can_start_a_field(serve: Serve, http: httpx.AsyncClient) -> None:
    hub = echo_hub()
    server = await serve(hub)
    async with stream(http, f"{server.url}/events") as events:
        await events.welcome()
        cursor = await hub.emit("text", {"key": HOSTILE, HOSTILE: None})
        fields = await events.event()
        assert set(fields) == {"event", "data", "id"}
        assert (fields["event"], fields["id"]) == ("text", cursor)
        assert json.loads(fields["data"]) == {"key": HOSTILE, HOSTILE: None}


@pytest.mark.parametrize("data", ["", " leading", "  two", None, 0, [], [1, "two"], {}])
async def test_data_survives_as_it_is(data: Any, serve: Serve, new_client: NewClient) -> None:
    hub = echo_hub()
    server = await serve(hub)
    client = new_client("sse")
    await client.connect(server.url)
    await hub.emit("value", data)
    assert (await client.next_event("value")).data == data


@pytest.mark.parametrize("name", ["a\rb", "a\nb", "a\r\nb", "a\x00b", "\x1b[0m", "", "a\x7fb"])
async def test_control_characters_in_an_event_name_are_refused(name: str) -> None:
    hub = echo_hub()
    with pytest.raises(EncodeError):
        hub.emit(name, 1)
    with pytest.raises(EncodeError):
        hub.to("room\x00").emit("fine", 1)


async def test_event_names_may_hold_anything_printable(serve: Serve, new_client: NewClient) -> None:
    hub = echo_hub()
    server = await serve(hub)
    client = new_client("sse")
    await client.connect(server.url)
    for name in ("data: x", "id", ":colon", " leading", "žluťoučký 🐎", "a\u2028b"):
        await hub.emit(name, 1)
        assert (await client.next_event(name)).data == 1


# --- 3, 4, 8: the stream itself ---------------------------------------------------------------


async def test_stream_opens_with_a_comment_and_retry_and_the_welcome(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    server = await serve(echo_hub(retry=1.5))
    async with stream(http, f"{server.url}/events") as events:
        raw = await events.block() + "\n\n"
        while "event: welcome" not in raw:
            raw += await events.block() + "\n\n"
    assert raw.startswith(":")
    lines = raw.split("\n")
    assert "retry: 1500" in lines
    assert "\ufeff" not in raw
    data = json.loads(next(line for line in lines if line.startswith("data: "))[6:])
    assert set(data) == {"sid", "session", "recovered", "offset"}
    assert len(data["sid"]) == 20
    assert data["recovered"] is False
    assert f"id: {data['offset']}" in lines


async def test_idle_stream_is_kept_alive_by_comments(serve: Serve, http: httpx.AsyncClient) -> None:
    server = await serve(echo_hub(keepalive_interval=0.05))
    async with stream(http, f"{server.url}/events") as events:
        await events.welcome()
        for _ in range(3):
            assert (await events.line()).startswith(":")


async def test_volatile_event_carries_no_id_and_leaves_the_last_one_alone(
    serve: Serve, http: httpx.AsyncClient, new_client: NewClient
) -> None:
    hub = echo_hub()
    server = await serve(hub)
    client = new_client("sse")
    await client.connect(server.url)
    async with stream(http, f"{server.url}/events") as events:
        await events.welcome()
        cursor = await hub.emit("kept", 1)
        await hub.volatile.emit("tick", 2)
        await hub.emit("kept", 3)
        assert (await events.event())["id"] == cursor
        assert "id" not in await events.event()
        assert (await events.event())["id"] != cursor
    await client.next_event("kept")
    assert (await client.next_event("tick")).offset == cursor


@pytest.mark.parametrize("event", ["message", "custom"])
async def test_custom_events_and_rooms_of_the_query(
    event: str, serve: Serve, new_client: NewClient
) -> None:
    hub = echo_hub()
    server = await serve(hub)
    both, one = new_client("sse"), new_client("sse")
    await both.connect(server.url, rooms=["a", "b"])
    await one.connect(server.url, rooms=["a"])
    assert sorted(hub.rooms["a"]) == sorted([both.sid, one.sid])
    await hub.to("b").emit(event, "to b")
    await hub.to("a").emit(event, "to a")
    await hub.to(one.sid).emit(event, "to one")
    await hub.emit(event, "to all")
    for _ in range(3):
        await both.next_event(event)
        await one.next_event(event)
    assert both.data_of(event) == ["to b", "to a", "to all"]
    assert one.data_of(event) == ["to a", "to one", "to all"]


# --- 5: Last-Event-ID -------------------------------------------------------------------------


async def raw_events(url: str, last_event_id: bytes) -> bytes:
    """Return the start of a stream that was asked for with these bytes as cursor."""
    parts = httpx.URL(url)
    reader, writer = await asyncio.open_connection(parts.host, parts.port)
    writer.write(
        b"GET /events HTTP/1.1\r\nHost: x\r\nLast-Event-ID: " + last_event_id + b"\r\n\r\n"
    )
    received = b""
    async with asyncio.timeout(WAIT):
        while b"event: gap" not in received and b"\r\n\r\n{" not in received:
            chunk = await reader.read(4096)
            assert chunk, received
            received += chunk
    writer.close()
    await writer.wait_closed()
    return received


@pytest.mark.parametrize(
    "cursor",
    [
        b"nonsense",
        "é".encode(),
        b"\xff\xfe",
        b"x" * 129,
        b"x" * 8000,
        b"'; DROP",
        b"-",
        b"..",
        b"1-1-1",
    ],
)
async def test_untrusted_last_event_id_is_a_gap(cursor: bytes, serve: Serve) -> None:
    server = await serve(echo_hub())
    received = await raw_events(server.url, cursor)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b'"reason":"unknown"' in received


async def test_header_and_query_cursors_both_resume(serve: Serve, http: httpx.AsyncClient) -> None:
    hub = echo_hub()
    server = await serve(hub)
    start = await hub.emit("number", 0)
    await hub.emit("number", 1)
    url = f"{server.url}/events"
    async with stream(http, url, {"Last-Event-ID": start}) as events:
        assert (await events.welcome())["offset"] == start
        assert (await events.event())["data"] == "1"
    async with stream(http, url, lastEventId=start) as events:
        await events.welcome()
        assert (await events.event())["data"] == "1"
    # EventSource adds the header when it comes back to the URL it was given: it is newer.
    latest = await hub.emit("number", 2)
    await hub.emit("number", 3)
    async with stream(http, url, {"Last-Event-ID": latest}, lastEventId=start) as events:
        await events.welcome()
        assert (await events.event())["data"] == "3"


async def test_welcome_of_a_returning_client_does_not_move_its_cursor_on(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    hub = echo_hub()
    server = await serve(hub)
    start = await hub.emit("number", 0)
    await hub.emit("number", 1)
    async with stream(http, f"{server.url}/events", {"Last-Event-ID": start}) as events:
        fields = await events.event()
        # Cut before the replay, it must still ask for what it did not get.
        assert fields["event"] == "welcome"
        assert fields.get("id", start) == start


async def test_welcome_before_a_gap_carries_no_cursor(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    hub = echo_hub()
    server = await serve(hub)
    await hub.emit("number", 0)
    async with stream(http, f"{server.url}/events", {"Last-Event-ID": "unknown"}) as events:
        # Cut before the gap, it must not come back as if it had lost nothing.
        welcome = await events.event()
        assert welcome["event"] == "welcome"
        assert "id" not in welcome
        assert json.loads(welcome["data"])["offset"] is None
        gap = await events.event()
        assert gap["event"] == "gap"
        assert gap["id"] == json.loads(gap["data"])["offset"]


@pytest.mark.parametrize(
    "query", ["room=", "room=a%00b", "room=" + "x" * 257, "session=short", "session=" + "x" * 65]
)
async def test_unusable_query_values_are_answered_400(
    query: str, serve: Serve, http: httpx.AsyncClient
) -> None:
    hub = echo_hub()
    server = await serve(hub)
    response = await http.get(f"{server.url}/events?{query}")
    assert response.status_code == 400
    assert response.json()["type"] == "error"
    assert response.json()["code"] == "invalid_request"
    assert not hub.sockets


# --- 6: who may come back ---------------------------------------------------------------------


async def test_client_the_server_disconnected_is_stopped_by_204(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    hub = echo_hub()
    server = await serve(hub)
    key = "chosen-by-the-client"
    url = f"{server.url}/events"
    async with stream(http, url, session=key) as events:
        welcome = await events.welcome()
        await hub.sockets[welcome["sid"]].disconnect()
        await events.end()
    response = await http.get(url, params={"session": key})
    assert response.status_code == 204
    assert response.content == b""
    # Anybody else is welcome.
    async with stream(http, url, session="another-client-altogether") as events:
        await events.welcome()


async def test_shutdown_is_told_and_ends_the_stream_properly(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    hub = echo_hub()
    server = await serve(hub)
    async with stream(http, f"{server.url}/events") as events:
        await events.welcome()
        await hub.stop()
        fields = await events.event()
        assert fields["event"] == "server:shutdown"
        assert json.loads(fields["data"])["message"]
        # A clean end: the last chunk is there, so EventSource comes back.
        await events.end()


async def test_refused_client_gets_its_status_and_json(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    hub = echo_hub()

    @hub.use
    def refuse(socket: Socket) -> None:
        raise ConnectionRefused("no entry", data={"why": "closed"}, status=401)

    server = await serve(hub)
    response = await http.get(f"{server.url}/events")
    assert response.status_code == 401
    assert response.json() == {
        "type": "error",
        "code": "refused",
        "error": "no entry",
        "data": {"why": "closed"},
    }
    response = await http.get(f"{server.url}/events/nowhere")
    assert response.status_code == 404
    assert response.json()["code"] == "invalid_namespace"


async def test_closed_stream_leaves_its_rooms(serve: Serve, http: httpx.AsyncClient) -> None:
    hub = echo_hub()
    left: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    hub.on("disconnect", lambda socket, reason: left.put_nowait((socket.id, reason)))
    server = await serve(hub)
    async with stream(http, f"{server.url}/events", room="a") as events:
        sid = (await events.welcome())["sid"]
        assert sid in hub.rooms["a"]
    async with asyncio.timeout(WAIT):
        assert await left.get() == (sid, "transport close")
    assert "a" not in hub.rooms
    assert not hub.sockets


# --- 7, 9: headers ----------------------------------------------------------------------------


async def test_headers_of_the_stream(serve: Serve, http: httpx.AsyncClient) -> None:
    server = await serve(echo_hub())
    asked = {"Accept": "text/event-stream", "Accept-Encoding": "gzip, br, deflate"}
    async with stream(http, f"{server.url}/events", asked) as events:
        headers = events.response.headers
        assert headers["content-type"].lower() in (
            "text/event-stream",
            "text/event-stream; charset=utf-8",
        )
        assert headers["cache-control"] in ("no-cache", "no-store")
        assert headers["x-accel-buffering"] == "no"
        assert "content-encoding" not in headers
        assert "content-length" not in headers


async def test_head_answers_headers_and_subscribes_to_nothing(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    hub = echo_hub()
    server = await serve(hub)
    response = await http.head(f"{server.url}/events")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.content == b""
    assert not hub.sockets
    assert (await http.head(f"{server.url}/events/nowhere")).status_code == 404


async def test_options_is_answered_for_stream_and_back_channel(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    server = await serve(echo_hub(cors_origins=(SITE,)))
    for path, method, asked in (
        ("/events", "GET", "last-event-id"),
        ("/events/abc", "POST", "content-type,x-crossband-session"),
    ):
        response = await http.options(
            server.url + path,
            headers={
                "Origin": SITE,
                "Access-Control-Request-Method": method,
                "Access-Control-Request-Headers": asked,
            },
        )
        assert response.status_code in (200, 204)
        assert response.headers["access-control-allow-origin"] == SITE
        assert response.headers["access-control-allow-credentials"] == "true"
        assert method in response.headers["access-control-allow-methods"]
        allowed = response.headers["access-control-allow-headers"].lower()
        assert set(asked.split(",")) <= {name.strip() for name in allowed.split(",")}


async def test_credentialed_cors_on_stream_and_back_channel(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    server = await serve(echo_hub(cors_origins=(SITE,)))
    origin = {"Origin": SITE}
    async with stream(http, f"{server.url}/events", origin) as events:
        welcome = await events.welcome()
        answer = await http.post(
            f"{server.url}/events/{welcome['sid']}",
            json={"type": "echo", "data": 1},
            headers={**origin, "X-Crossband-Session": welcome["session"]},
        )
        assert answer.status_code == 200
        for response in (events.response, answer):
            assert response.headers["access-control-allow-origin"] == SITE
            assert response.headers["access-control-allow-credentials"] == "true"
            assert "origin" in response.headers["vary"].lower()


async def test_other_origins_are_refused(serve: Serve, http: httpx.AsyncClient) -> None:
    hub = echo_hub(cors_origins=(SITE,))
    server = await serve(hub)
    evil = {"Origin": "https://evil.example.com"}
    for response in (
        await http.get(f"{server.url}/events", headers=evil),
        await http.post(f"{server.url}/events/abc", json={"type": "echo"}, headers=evil),
    ):
        assert response.status_code == 403
        assert response.json()["code"] == "origin_not_allowed"
        assert "access-control-allow-origin" not in response.headers
    assert not hub.sockets


async def test_other_methods_are_answered_405(serve: Serve, http: httpx.AsyncClient) -> None:
    server = await serve(echo_hub())
    for method in ("PUT", "DELETE", "PATCH"):
        response = await http.request(method, f"{server.url}/events")
        assert response.status_code == 405
        assert response.json()["code"] == "method_not_allowed"
        assert "GET" in response.headers["allow"]


# --- The back-channel -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "invalid_message"),
        (b"{", 422, "invalid_message"),
        (b"[]", 422, "invalid_message"),
        (b"{}", 422, "invalid_message"),
        (b'{"type":5}', 422, "invalid_message"),
        (b'{"type":""}', 422, "invalid_message"),
        (b'{"type":"echo","id":-1}', 422, "invalid_message"),
        (b'{"type":"echo","id":"1"}', 422, "invalid_message"),
        (b'{"type":"number","data":"x"}', 422, "invalid_message"),
        (b'{"type":"connect"}', 422, "invalid_message"),
        (b'{"type":"ack"}', 422, "invalid_message"),
        (b'{"type":"ack","id":12}', 404, "unknown_ack"),
        (b'{"type":"nobody knows"}', 404, "unknown_event"),
        (b'{"type":"broken"}', 500, "internal_error"),
        (b"\xff\xfe", 422, "invalid_message"),
        (b'{"type":"echo","data":' + b"[" * 20_000, 422, "invalid_message"),
        (
            b'{"type":"echo","data":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
            422,
            "invalid_message",
        ),
        (b'{"type":"echo","data":"' + b"x" * 70_000 + b'"}', 413, "message_too_large"),
    ],
    ids=range(18),
)
async def test_bad_post_gets_its_documented_error(
    body: bytes, status: int, code: str, serve: Serve, new_client: NewClient
) -> None:
    hub = echo_hub()
    server = await serve(hub)
    client = new_client("sse")
    assert isinstance(client, EventStreamClient)
    await client.connect(server.url)
    response = await client.post_body(body)
    assert response.status_code == status
    answer = response.json()
    assert (answer["type"], answer["code"]) == ("error", code)
    if code == "invalid_message":
        assert answer["error"] == "Invalid message format"
        assert answer["path"].startswith("$")
        assert answer["reason"]
    if code == "message_too_large":
        assert answer["maxSize"] == 65_536
    if code == "internal_error":
        assert "bug" not in response.text
    assert await client.call("echo", "alive") == "alive"


async def test_error_answers_repeat_the_id(serve: Serve, new_client: NewClient) -> None:
    server = await serve(echo_hub())
    client = new_client("sse")
    assert isinstance(client, EventStreamClient)
    await client.connect(server.url)
    response = await client.post({"type": "number", "data": "x", "id": 99})
    assert response.status_code == 422
    assert response.json()["id"] == 99
    # An acknowledgement always comes, with the id only if there was one.
    response = await client.post({"type": "number", "data": 5})
    assert response.json() == {"type": "ack", "data": 5}


async def test_post_over_the_limit_is_refused_while_it_streams(
    serve: Serve, new_client: NewClient, http: httpx.AsyncClient
) -> None:
    server = await serve(echo_hub(limits=Limits(message_size=1000)))
    client = new_client("sse")
    await client.connect(server.url)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 100

    response = await http.post(
        f"{server.url}/events/{client.sid}",
        content=chunks(),
        headers={"X-Crossband-Session": str(client.session)},
    )
    assert response.status_code == 413
    assert response.json()["maxSize"] == 1000


async def test_back_channel_knows_only_its_own_clients(
    serve: Serve, new_client: NewClient, http: httpx.AsyncClient
) -> None:
    server = await serve(echo_hub())
    client, other = new_client("sse"), new_client("websocket")
    await client.connect(server.url)
    await other.connect(server.url)
    for sid, status, code in (
        ("nobody", 404, "unknown_client"),
        ("", 405, "method_not_allowed"),
        ("x" * 5000, 404, "unknown_client"),
        (other.sid, 404, "unknown_client"),
        # Ids are seen by other clients; only the session proves who it is.
        (client.sid, 401, "unauthorized"),
    ):
        response = await http.post(
            f"{server.url}/events/{sid}",
            json={"type": "echo", "data": 1},
            headers={"X-Crossband-Session": str(other.session)},
        )
        assert response.status_code == status
        assert response.json()["code"] == code


# --- 12: an independent decoder ---------------------------------------------------------------


@pytest.mark.node
async def test_undici_event_source_reads_what_was_sent_and_comes_back(node: NodeRunner) -> None:
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    client = node.new_client(messages.put_nowait)

    async def message(event: str) -> dict[str, Any]:
        async with asyncio.timeout(WAIT):
            while True:
                notice = await messages.get()
                if notice["notice"] == "message" and notice["event"] == event:
                    return notice

    hub = echo_hub(retry=0.05)
    async with Server(hub) as server:
        await node.ask(
            "open",
            client=client,
            kind="eventsource",
            url=f"{server.url}/events?room=a",
            events=["welcome", "text", "a\u2028b", "gap", "server:shutdown"],
        )
        assert (await node.ask("connect", client=client))["connected"]
        values = [HOSTILE, "", " leading", {"key": HOSTILE}, [None, 1.5, True], "x" * 100_000]
        for value in values:
            cursor = await hub.to("a").emit("text", value)
            notice = await message("text")
            assert json.loads(notice["data"]) == value
            assert notice["lastEventId"] == cursor
        await hub.volatile.emit("a\u2028b", 1)
        assert (await message("a\u2028b"))["lastEventId"] == cursor
    # A proper end of the stream: it comes back by itself, with a cursor of another epoch.
    await message("server:shutdown")
    hub = echo_hub()
    async with Server(hub, port=server.port):
        gap = await message("gap")
        assert json.loads(gap["data"])["reason"] == "unknown"
        await hub.to("a").emit("text", "after the restart")
        assert json.loads((await message("text"))["data"]) == "after the restart"
        await node.ask("close", client=client)


# --- plain namespaces -------------------------------------------------------------------------


@HUBS
async def test_data_of_a_plain_namespace_is_the_text_itself(
    kind: type[Hub], serve: Serve, http: httpx.AsyncClient
) -> None:
    hub = kind()
    plain = hub.of("/plain", plain=True)
    server = await serve(hub)
    async with stream(http, f"{server.url}/events/plain") as events:
        # The client's id is in the welcome, as ever; `onmessage` does not see it.
        welcome = await events.welcome()
        assert set(welcome) == {"sid", "session", "recovered", "offset"}
        for value, text in (
            ("hello", "hello"),
            ('"quoted"', '"quoted"'),
            ("", ""),
            (" two\nlines ", " two\nlines "),
            ("a\r\nb\rc", "a\nb\nc"),
            (HOSTILE, HOSTILE.replace("\r\n", "\n").replace("\r", "\n")),
            (b"\x00\xff", "AP8="),
            ({"a": 1}, '{"a":1}'),
            (5, "5"),
            (None, "null"),
        ):
            cursor = await plain.emit("message", value)
            assert await events.event() == {"event": "message", "data": text, "id": cursor}
        await plain.volatile.emit("message", "volatile")
        assert await events.event() == {"event": "message", "data": "volatile"}
        cursor = await plain.emit("price", "1.50")
        assert await events.event() == {"event": "price", "data": "1.50", "id": cursor}
        await plain.emit("pair", "a", "b")
        assert (await events.event())["data"] == '["a","b"]'
        await plain.emit("nothing")
        assert (await events.event())["data"] == "null"
    missed = await plain.emit("message", "missed")
    headers = {"Last-Event-ID": cursor}
    async with stream(http, f"{server.url}/events/plain", headers) as events:
        await events.welcome()
        assert [(await events.event())["data"] for _ in range(3)] == ['["a","b"]', "null", "missed"]
        assert missed


@HUBS
async def test_back_channel_of_a_plain_namespace_takes_bare_text_and_bytes(
    kind: type[Hub], serve: Serve, http: httpx.AsyncClient
) -> None:
    hub = kind()
    plain = hub.of(lambda name: name.startswith("/plain"), plain=True)

    @plain.on("message")
    async def message(socket: Socket, data: str | bytes) -> str:
        return f"{type(data).__name__} {data!r}"

    @plain.on("named")
    def named(socket: Socket, number: int) -> int:
        return number

    server = await serve(hub)
    async with stream(http, f"{server.url}/events/plain-1") as events:
        welcome = await events.welcome()
        url = f"{server.url}/events/{welcome['sid']}?session={welcome['session']}"

        async def post(body: bytes, content_type: str | None) -> httpx.Response:
            headers = {} if content_type is None else {"Content-Type": content_type}
            return await http.post(url, content=body, headers=headers)

        for body, content_type, answer in (
            (b"hello", "text/plain", "str 'hello'"),
            (b"", "text/plain", "str ''"),
            ("é".encode(), "Text/Plain; charset=utf-8", "str 'é'"),
            (b'{"type":"named","data":1}', "text/plain", 'str \'{"type":"named","data":1}\''),
            (b"\x00\xff", "application/octet-stream", r"bytes b'\x00\xff'"),
        ):
            response = await post(body, content_type)
            assert (response.status_code, response.json()) == (200, {"type": "ack", "data": answer})
        # Anything else is an envelope, as in other namespaces.
        for other in (None, "application/json", "application/x-www-form-urlencoded"):
            response = await post(b'{"type":"named","data":1,"id":2}', other)
            assert response.json() == {"type": "ack", "id": 2, "data": 1}
        response = await post(b"\xff", "text/plain")
        assert (response.status_code, response.json()["reason"]) == (422, "Not UTF-8")
        response = await post(b"hello", None)
        assert response.status_code == 422


async def test_bare_text_is_an_envelope_in_other_namespaces(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    server = await serve(echo_hub())
    async with stream(http, f"{server.url}/events") as events:
        welcome = await events.welcome()
        response = await http.post(
            f"{server.url}/events/{welcome['sid']}?session={welcome['session']}",
            content=b'{"type":"echo","data":1}',
            headers={"Content-Type": "text/plain"},
        )
        assert response.json() == {"type": "ack", "data": 1}


# --- what passes: EventSource comes back from a stream that ends, and from nothing else ---------

EVENT_SOURCE = {"Accept": "text/event-stream"}
# Made anew for each client: one that is raised keeps the frames it went through.
PASSING: dict[str, Callable[[], Exception]] = {
    "keys": lambda: ConnectionRefused(code="unavailable", status=503),
    "a fault": lambda: ValueError("a bug"),
    "too slow": lambda: ConnectionRefused(code="handshake_timeout", status=503),
    "too fast": lambda: RateLimited(30.0),
    "too many": lambda: ConnectionRefused(code="too_many", status=429),
}
FINAL: dict[str, Callable[[], Exception]] = {
    "token": lambda: Unauthorized("who?"),
    "banned": lambda: ConnectionRefused("banned"),
    "payment": lambda: ConnectionRefused(status=402),
    "gone": lambda: ConnectionRefused(status=410),
}


def refusing_hub(error: Callable[[], Exception], where: str) -> Hub:
    def refuse(_: Any) -> None:
        raise error()

    if where == "authenticate":
        return Hub(authenticate=refuse)
    hub = Hub()
    hub.use(refuse)
    return hub


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
@pytest.mark.parametrize("where", ["authenticate", "middleware"])
@pytest.mark.parametrize("failure", PASSING)
async def test_event_source_comes_back_after_what_passes(
    failure: str, where: str, lane: bool, serve: Serve, http: httpx.AsyncClient
) -> None:
    server = await serve(refusing_hub(PASSING[failure], where), lane=lane)
    response = await http.get(server.url + "/events", headers=EVENT_SOURCE)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    ok, retry, event, data, *rest = response.text.split("\n")
    assert (ok, event) == (": ok", "event: error")
    assert set(json.loads(data.removeprefix("data: "))) >= {"code", "error"}
    assert not any(rest)
    # Later than after a cut: others come too.
    wait = int(retry.removeprefix("retry: "))
    assert wait >= (30_000 if failure == "too fast" else 6_000)
    # Who can tell statuses apart is told by status.
    for accept in ("*/*", "text/event-stream, application/json"):
        response = await http.get(server.url + "/events", headers={"Accept": accept})
        assert response.status_code >= 429
        assert response.json()["type"] == "error"


@pytest.mark.parametrize("where", ["authenticate", "middleware"])
@pytest.mark.parametrize("failure", FINAL)
async def test_event_source_stays_away_after_what_stays(
    failure: str, where: str, serve: Serve, http: httpx.AsyncClient
) -> None:
    server = await serve(refusing_hub(FINAL[failure], where))
    response = await http.get(server.url + "/events", headers=EVENT_SOURCE)
    assert 400 <= response.status_code < 429
    assert response.json()["type"] == "error"
    response = await http.get(server.url + "/events/nowhere", headers=EVENT_SOURCE)
    assert response.status_code in (401, 402, 403, 404, 410)


@pytest.mark.parametrize("limit", ["connections", "connections_per_address"])
async def test_event_source_comes_back_to_a_full_server(
    limit: str, serve: Serve, http: httpx.AsyncClient
) -> None:
    server = await serve(Hub(limits={limit: 1}))
    async with stream(http, server.url + "/events") as first:
        await first.line()
        response = await http.get(server.url + "/events", headers=EVENT_SOURCE)
        assert response.status_code == 200
        assert '"code":"too_many_connections"' in response.text
