"""The Socket.IO door beside Node's: what official clients send there is taken here."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from crossband import Hub, Socket
from crossband.limits import Limits
from tests.census import census, returns_to
from tests.clients import NewClient, NodeRunner
from tests.clients.base import WAIT
from tests.clients.raw import (
    SEPARATOR,
    Polling,
    answer_of,
    close_code,
    engine_url,
    engine_websocket,
    text,
)
from tests.conftest import Serve
from tests.lanes import HUBS

PLACE = '{"_placeholder":true,"num":%d}'


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=WAIT, trust_env=False, verify=False) as client:
        yield client


def echo_hub(kind: type[Hub] = Hub, **settings: Any) -> Hub:
    hub = kind(**settings)

    @hub.on("echo")
    async def echo(socket: Socket, data: Any) -> Any:
        return data

    @hub.on("sizes")
    async def sizes(socket: Socket, *parts: bytes) -> list[int]:
        return [len(part) for part in parts]

    return hub


class Door:
    """One session by hand, over a WebSocket or over polling."""

    def __init__(self, transport: str, http: httpx.AsyncClient, url: str) -> None:
        self.transport = transport
        self.polling = Polling(http, url)
        self._url = url
        self._websocket: ClientConnection

    async def connect(self) -> dict[str, Any]:
        if self.transport == "polling":
            return await self.polling.connect()
        self._websocket, answer = await engine_websocket(self._url)
        return answer

    async def open(self) -> None:
        """Open the session without joining a namespace."""
        if self.transport == "polling":
            await self.polling.open()
        else:
            self._websocket = await connect(engine_url(self._url), proxy=None)
            assert (await text(self._websocket)).startswith("0{")

    async def send(self, *messages: str | bytes) -> None:
        if self.transport == "polling":
            for message in messages:
                packet = message if isinstance(message, str) else _base64(message)
                assert (await self.polling.post(packet)).text == "ok"
            return
        for message in messages:
            await self._websocket.send(message)

    async def together(self, *packets: str) -> None:
        """Send packets in one piece: one body, or frames in one write."""
        if self.transport == "polling":
            assert (await self.polling.post(*packets)).text == "ok"
        else:
            protocol = self._websocket.protocol
            for packet in packets:
                protocol.send_text(packet.encode())
            # In writes of their own the server may hear, and answer, the first before the next.
            self._websocket.transport.write(b"".join(protocol.data_to_send()))

    async def packet(self) -> str:
        if self.transport == "polling":
            return await self.polling.packet()
        return await text(self._websocket)

    async def ended(self, packet: str) -> None:
        """Send a packet that ends the session, and see that it does."""
        if self.transport == "polling":
            response = await self.polling.post(*packet.split(SEPARATOR))
            assert response.status_code == 400
            assert (await self.polling.poll()).status_code == 400
            return
        for part in packet.split(SEPARATOR):
            await self._websocket.send(base64.b64decode(part[1:]) if part[0] == "b" else part)
        assert await close_code(self._websocket) == 1002

    async def close(self) -> None:
        if self.transport == "polling":
            await self.polling.close()
        else:
            await self._websocket.close()


def _base64(data: bytes) -> str:
    return "b" + base64.b64encode(data).decode()


TRANSPORTS = pytest.mark.parametrize("transport", ["polling", "websocket"])


@pytest.fixture
async def door(serve: Serve, http: httpx.AsyncClient) -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:

        def make(transport: str, url: str) -> Door:
            made = Door(transport, http, url)
            stack.push_async_callback(made.close)
            return made

        yield make


# --- Much at once ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [129, 1_000])
async def test_any_number_of_packets_fits_in_a_body(
    count: int, serve: Serve, http: httpx.AsyncClient
) -> None:
    server = await serve(echo_hub())
    polling = Polling(http, server.url)
    await polling.connect()
    assert (await polling.post(*(f'42{n}["echo",{n}]' for n in range(count)))).text == "ok"
    assert [await polling.packet() for _ in range(count)] == [f"43{n}[{n}]" for n in range(count)]
    await polling.close()


async def test_body_of_many_packets_does_not_stop_the_others(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    server = await serve(echo_hub(limits=Limits(message_rate=0, byte_rate=0)))
    polling, other = Polling(http, server.url), Polling(http, server.url)
    await polling.connect()
    await other.connect()
    body = asyncio.create_task(polling.post(*["3"] * 50_000))
    await other.post('421["echo","served"]')
    assert await other.packet() == '431["served"]'
    assert (await body).text == "ok"
    await polling.close()
    await other.close()


@HUBS
async def test_posts_that_overlap_wait_for_the_inbox(
    kind: type[Hub], serve: Serve, http: httpx.AsyncClient
) -> None:
    hub = kind(limits=Limits(inbox_size=10_000))
    gate, started = asyncio.Event(), asyncio.Event()
    handled: list[int] = []
    waited: list[int] = []

    @hub.on("work")
    async def work(socket: Socket, number: int, data: str) -> None:
        waited.append(socket.waiting)
        started.set()
        await gate.wait()
        handled.append(number)

    server = await serve(hub)
    polling = Polling(http, server.url)
    await polling.connect()
    posts = [
        asyncio.create_task(polling.post(f'42["work",{number},"{"x" * 4_000}"]'))
        for number in range(20)
    ]
    async with asyncio.timeout(WAIT):
        await started.wait()
    # One is in its handler, and three are more than 10,000 bytes.
    await returns_to(Counter(waiting=3), lambda: Counter(waiting=waiting_in(hub)))
    gate.set()
    assert [(await post).text for post in posts] == ["ok"] * 20
    await returns_to(Counter(), lambda: Counter(waiting=waiting_in(hub)))
    assert sorted(handled) == list(range(20))
    assert max(waited) <= 3
    await polling.close()


def waiting_in(hub: Hub) -> int:
    return sum(socket.waiting for socket in hub.sockets.values())


async def test_posts_are_bounded_in_number(serve: Serve, http: httpx.AsyncClient) -> None:
    hub = Hub(limits=Limits(inbox=1))
    gate, left = asyncio.Event(), asyncio.Event()
    hub.on("disconnect", lambda socket, reason: left.set())

    @hub.on("work")
    async def work(socket: Socket) -> None:
        await gate.wait()

    server = await serve(hub)
    async with httpx.AsyncClient(
        timeout=WAIT, trust_env=False, limits=httpx.Limits(max_connections=100), verify=False
    ) as many:
        polling = Polling(many, server.url)
        await polling.connect()
        posts = [asyncio.create_task(polling.post('42["work"]')) for _ in range(80)]
        # The one too many ends the session.
        async with asyncio.timeout(WAIT):
            for post in asyncio.as_completed(posts):
                if (await post).status_code == 400:
                    break
        gate.set()
        await asyncio.gather(*posts)
        async with asyncio.timeout(WAIT):
            await left.wait()


async def test_over_large_post_ends_its_session_at_once(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    hub = echo_hub(limits=Limits(max_http_buffer_size=10_000))
    reasons: asyncio.Queue[str] = asyncio.Queue()
    hub.on("disconnect", lambda socket, reason: reasons.put_nowait(reason))
    server = await serve(hub)
    polling = Polling(http, server.url)
    await polling.connect()
    pending = await polling.pending_poll()
    assert (await polling.post_body(b"4" * 10_001)).status_code == 413
    assert (await pending).text == "1"
    assert (await polling.poll()).status_code == 400
    assert await reasons.get() == "parse error"


@HUBS
@TRANSPORTS
async def test_attachments_may_exceed_one_message_together(
    transport: str, kind: type[Hub], door: Any, serve: Serve
) -> None:
    server = await serve(echo_hub(kind))
    client = door(transport, server.url)
    await client.connect()
    places = ",".join(PLACE % number for number in range(2))
    await client.send(f'452-1["sizes",{places}]', b"x" * 600_000, b"y" * 600_000)
    assert await client.packet() == "431[[600000,600000]]"
    if transport == "websocket":
        await client.send(f'451-2["sizes",{PLACE % 0}]', b"x" * 999_999)
        assert await client.packet() == "432[[999999]]"


@HUBS
async def test_ten_attachments_of_a_megabyte_are_the_largest_event(
    kind: type[Hub], serve: Serve
) -> None:
    server = await serve(echo_hub(kind))
    connection, _ = await engine_websocket(server.url)
    places = ",".join(PLACE % number for number in range(10))
    await connection.send(f'4510-1["sizes",{places}]')
    for _ in range(10):
        await connection.send(b"x" * 1_000_000)
    assert await text(connection) == f"431[{[1_000_000] * 10}]".replace(" ", "")
    await connection.close()


@HUBS
async def test_event_over_its_own_limit_closes_1009(kind: type[Hub], serve: Serve) -> None:
    limits = Limits(max_http_buffer_size=1_000, event_size=2_500)
    server = await serve(echo_hub(kind, limits=limits))
    connection, _ = await engine_websocket(server.url)
    await connection.send('453-1["sizes",' + ",".join(PLACE % n for n in range(3)) + "]")
    for _ in range(3):
        await connection.send(b"x" * 900)
    assert await close_code(connection) == 1009


# --- Names and forms --------------------------------------------------------------------------


@HUBS
@TRANSPORTS
@pytest.mark.parametrize(
    ("number", "name"), [("7", "7"), ("-1", "-1"), ("1.50", "1.5"), ("1e21", "1e+21")]
)
async def test_number_as_event_name_is_heard_by_its_text(
    number: str, name: str, transport: str, kind: type[Hub], door: Any, serve: Serve
) -> None:
    hub = kind()

    @hub.on(name)
    def numbered(socket: Socket, data: Any) -> Any:
        return [name, data]

    server = await serve(hub)
    client = door(transport, server.url)
    await client.connect()
    await client.send(f'421[{number},"x"]')
    assert await client.packet() == f'431[["{name}","x"]]'
    await client.send(f"451-2[{number},{PLACE % 0}]", b"\x00")
    assert (await client.packet()).startswith(f'461-2[["{name}",')


@HUBS
@TRANSPORTS
async def test_white_space_in_base64_is_skipped(
    transport: str, kind: type[Hub], door: Any, serve: Serve
) -> None:
    server = await serve(echo_hub(kind))
    client = door(transport, server.url)
    await client.connect()
    # In text frames over WebSocket too: what `forceBase64` sends.
    wrapped = base64.encodebytes(b"x" * 200_000).decode().replace("\n", "\r\n")
    await client.send(f'452-1["sizes",{PLACE % 0},{PLACE % 1}]', "bAQID\n", "b" + wrapped)
    assert await client.packet() == "431[[3,200000]]"


@HUBS
@pytest.mark.parametrize("upgraded", [False, True])
async def test_client_without_binary_frames_gets_base64(
    upgraded: bool, kind: type[Hub], serve: Serve, http: httpx.AsyncClient
) -> None:
    server = await serve(echo_hub(kind))
    if upgraded:
        polling = Polling(http, server.url)
        polling.params["b64"] = "1"
        await polling.connect()
        connection = await connect(
            engine_url(server.url, sid=polling.params["sid"], b64="1"), proxy=None
        )
        await connection.send("2probe")
        assert await text(connection) == "3probe"
        await connection.send("5")
    else:
        connection = await connect(engine_url(server.url, b64="1"), proxy=None)
        assert (await text(connection)).startswith("0{")
        await connection.send("40")
        answer_of(await text(connection))
    for number in range(2):
        await connection.send(f'451-{number}["echo",{PLACE % 0}]')
        await connection.send("bAQID")
        assert await text(connection) == f"461-{number}[{PLACE % 0}]"
        assert await text(connection) == "bAQID"
    await connection.close()


@HUBS
@TRANSPORTS
@pytest.mark.parametrize(
    ("packet", "why"),
    [
        ('451-1["echo",%s]' + SEPARATOR + "bAA==", 1),
        ('451-1["nobody",%s]' + SEPARATOR + "bAA==", -1),
        ('451-1["echo",%s]' + SEPARATOR + "bAA==", '"0"'),
        ('451-1["echo",%s]' + SEPARATOR + "bAA==", 0.5),
        ('451-["echo",%s,%s]' + SEPARATOR + "bAA==", 0),
    ],
)
async def test_placeholder_without_its_attachment_ends_the_session(
    packet: str, why: Any, transport: str, kind: type[Hub], door: Any, serve: Serve
) -> None:
    server = await serve(echo_hub(kind))
    client = door(transport, server.url)
    await client.connect()
    await client.ended(packet.replace("%s", f'{{"_placeholder":true,"num":{why}}}'))


async def test_refused_post_names_its_cause(serve: Serve, http: httpx.AsyncClient) -> None:
    server = await serve(echo_hub())
    for body, reason in (
        (b"42[true]", "event name is not a string or number (Socket.IO 5, EVENT)"),
        (b"b!!!!", "binary packet is not base64 (Engine.IO 4, packet encoding)"),
        (b"\xff", "not UTF-8"),
        (b"", "empty payload (Engine.IO 4, HTTP long-polling)"),
        (b"2", "unexpected PING packet (Engine.IO 4)"),
    ):
        polling = Polling(http, server.url)
        await polling.connect()
        response = await polling.post_body(body)
        assert response.status_code == 400
        assert response.json() == {"code": 3, "message": "Bad request", "reason": reason}
    # Where there is nothing to add, the body is Node's.
    assert (await polling.poll()).json() == {"code": 1, "message": "Session ID unknown"}


# --- Heartbeats and admission -------------------------------------------------------------------


@HUBS
@TRANSPORTS
async def test_heartbeats_begin_with_the_handshake(
    transport: str, kind: type[Hub], door: Any, serve: Serve
) -> None:
    hub = echo_hub(kind, ping_interval=0.05, ping_timeout=WAIT)
    gate = asyncio.Event()

    @hub.use
    async def slow(socket: Socket) -> None:
        await gate.wait()

    server = await serve(hub)
    client = door(transport, server.url)
    await client.open()
    await client.send("40")
    for _ in range(3):
        assert await client.packet() == "2"
        await client.send("3")
    gate.set()
    while (packet := await client.packet()) == "2":
        await client.send("3")
    answer_of(packet)


@HUBS
@TRANSPORTS
async def test_handshake_time_is_not_for_who_is_being_examined(
    transport: str, kind: type[Hub], door: Any, serve: Serve
) -> None:
    hub = echo_hub(kind, limits=Limits(handshake_time=1.5))
    loop = asyncio.get_running_loop()

    # Its own time begins where that of the handshake is nearly over.
    @hub.use
    async def slow(socket: Socket) -> None:
        await asyncio.sleep(0.9)

    server = await serve(hub)
    client = door(transport, server.url)
    await client.open()
    await asyncio.sleep(0.9)
    begun = loop.time()
    await client.send("40")
    answer_of(await client.packet())
    assert loop.time() - begun >= 0.89


@TRANSPORTS
async def test_each_connect_to_an_unknown_namespace_is_answered(
    transport: str, door: Any, serve: Serve
) -> None:
    server = await serve(echo_hub())
    client = door(transport, server.url)
    await client.connect()
    await client.together("40/custom,", "40/custom,")
    for _ in range(2):
        assert await client.packet() == '44/custom,{"message":"Invalid namespace"}'
    await client.send('421["echo",1]')
    assert await client.packet() == "431[1]"


@HUBS
@TRANSPORTS
@pytest.mark.parametrize("slow", [False, True])
async def test_double_connect_keeps_the_shared_connection(
    slow: bool, transport: str, kind: type[Hub], door: Any, serve: Serve
) -> None:
    hub = echo_hub(kind)
    second = hub.of("/second")
    second.on("echo", lambda socket, data: data)
    connects: list[str] = []
    second.on("connect", lambda socket: connects.append(socket.id))

    @second.use
    async def examine(socket: Socket) -> None:
        if slow:
            await asyncio.sleep(0.01)

    server = await serve(hub)
    client = door(transport, server.url)
    await client.connect()
    await client.together("40/second,", "40/second,")
    answers = [await client.packet() for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0].startswith('40/second,{"sid":')
    # And once more, of one that has joined.
    await client.send("40/second,")
    assert await client.packet() == answers[0]
    await client.send('421["echo",1]', '42/second,2["echo",2]')
    assert await client.packet() == "431[1]"
    assert await client.packet() == "43/second,2[2]"
    assert len(connects) == len(second.sockets) == 1


@HUBS
@TRANSPORTS
@pytest.mark.parametrize("begun", [False, True])
async def test_connect_that_is_taken_back_is_given_up(
    begun: bool, transport: str, kind: type[Hub], door: Any, serve: Serve
) -> None:
    hub = echo_hub(kind)
    second = hub.of("/second")
    started = asyncio.Event()
    examined: list[str] = []

    @second.use
    async def examine(socket: Socket) -> None:
        examined.append(socket.id)
        started.set()
        if begun and len(examined) == 1:
            await asyncio.Event().wait()

    server = await serve(hub)
    client = door(transport, server.url)
    await client.connect()
    # As React's StrictMode: mounted, unmounted, and mounted again.
    if begun:
        await client.send("40/second,")
        async with asyncio.timeout(WAIT):
            await started.wait()
        await client.together("41/second,", "40/second,")
    else:
        await client.together("40/second,", "41/second,", "40/second,")
    answer = json.loads((await client.packet()).removeprefix("40/second,"))
    assert answer["sid"] == examined[-1]
    assert list(second.sockets) == [answer["sid"]]
    await client.send('421["echo",1]')
    assert await client.packet() == "431[1]"


@HUBS
@TRANSPORTS
@pytest.mark.parametrize("where", ["authenticate", "middleware"])
async def test_session_that_ends_takes_its_admission_with_it(
    where: str, transport: str, kind: type[Hub], door: Any, serve: Serve
) -> None:
    started, given_up = asyncio.Event(), asyncio.Event()

    async def wait(about: Any) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up.set()
            raise

    hub = echo_hub(kind, authenticate=wait) if where == "authenticate" else echo_hub(kind)
    if where == "middleware":
        hub.use(wait)
    server = await serve(hub)
    start = census(hub)
    client = door(transport, server.url)
    await client.open()
    await client.send("40")
    async with asyncio.timeout(WAIT):
        await started.wait()
        await client.close()
        await given_up.wait()
    await returns_to(start, lambda: census(hub))


# --- With the official client -------------------------------------------------------------------


async def test_python_client_is_given_as_much_as_it_reads(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    hub = echo_hub()
    server = await serve(hub)
    for agent, sizes in (("Python/3.13 aiohttp/3.12", [16, 16, 8]), ("node-XMLHttpRequest", [40])):
        polling = Polling(http, server.url)
        polling.headers["User-Agent"] = agent
        await polling.connect()
        await polling.post(f'451-0["echo",{PLACE % 0}]' + SEPARATOR + "bAA==")
        # Two packets that stay together, and others before and behind them.
        await polling.post(*(f'42{n}["echo",{n}]' for n in range(1, 39)))
        got: list[str] = []
        for size in sizes:
            packets = (await polling.poll()).text.split(SEPARATOR)
            got += packets
            assert len(packets) == size
        assert got[:2] == [f"461-0[{PLACE % 0}]", "bAA=="]
        assert got[2:] == [f"43{n}[{n}]" for n in range(1, 39)]
        await polling.close()


POLLING = pytest.mark.parametrize(
    "client_kind",
    [
        "socket.io-client polling",
        "socket.io-client websocket",
        "socket.io-client upgrading",
        "python-socketio polling",
        "python-socketio",
    ],
)


@pytest.mark.node
@HUBS
@POLLING
async def test_thousand_in_a_row_are_handled_and_answered(
    client_kind: str, kind: type[Hub], serve: Serve, new_client: NewClient
) -> None:
    hub = echo_hub(kind)
    got: list[int] = []
    hub.on("count", lambda socket, number: got.append(number))

    @hub.on("spray")
    async def spray(socket: Socket, count: int) -> None:
        for number in range(count):
            socket.emit("drop", number)

    server = await serve(hub)
    client = new_client(client_kind)
    await client.connect(server.url)
    await asyncio.gather(*(client.emit("count", number) for number in range(1_000)))
    assert await client.call("echo", "last") == "last"
    assert got == list(range(1_000))
    await client.emit("spray", 1_000)
    for number in range(1_000):
        assert (await client.next_event("drop")).data == number
    large = "x" * 200_000
    assert await client.call("echo", large) == large
    blob = bytes(range(256)) * 800
    assert await client.call("echo", blob) == blob


@pytest.mark.node
@HUBS
async def test_official_client_may_force_base64(
    kind: type[Hub], serve: Serve, node: NodeRunner
) -> None:
    server = await serve(echo_hub(kind))
    for transports in (["websocket"], ["polling"], ["polling", "websocket"]):
        client = node.new_client(lambda message: None)
        await node.ask(
            "open",
            client=client,
            kind="socketio",
            url=server.url,
            namespace="/",
            transports=transports,
            forceBase64=True,
        )
        assert (await node.ask("connect", client=client))["connected"]
        blob = {"$bytes": base64.b64encode(b"\x00\x01\xff" * 1_000).decode()}
        answer = await node.ask(
            "call", client=client, event="echo", args=[blob], timeout=WAIT * 1000
        )
        assert answer == {"answer": blob}
        await node.ask("close", client=client)


# --- What an event comes to ---------------------------------------------------------------------


@HUBS
@TRANSPORTS
async def test_unknown_event_is_not_acknowledged(
    transport: str, kind: type[Hub], door: Any, serve: Serve
) -> None:
    server = await serve(echo_hub(kind))
    client = door(transport, server.url)
    await client.connect()
    await client.send('421["nobody",1]', f'451-2["nobody",{PLACE % 0}]', b"\x00", '423["echo",3]')
    assert await client.packet() == "433[3]"


@pytest.mark.node
async def test_official_client_times_out_on_an_unknown_event(
    serve: Serve, node: NodeRunner
) -> None:
    server = await serve(echo_hub())
    client = node.new_client(lambda message: None)
    await node.ask(
        "open",
        client=client,
        kind="socketio",
        url=server.url,
        namespace="/",
        transports=["websocket"],
    )
    assert (await node.ask("connect", client=client))["connected"]
    with pytest.raises(RuntimeError, match="timed out"):
        await node.ask("call", client=client, event="nobody", args=[1], timeout=50)
    await node.ask("close", client=client)


@TRANSPORTS
async def test_number_that_nobody_knows_is_answered(
    transport: str, door: Any, serve: Serve
) -> None:
    server = await serve(echo_hub())
    client = door(transport, server.url)
    await client.connect()
    await client.send('421[7,"x"]')
    packet = await client.packet()
    assert packet.startswith("431[")
    assert json.loads(packet[3:])[0]["code"] == "unknown_event"


@HUBS
@TRANSPORTS
async def test_failed_event_may_stay_unanswered(
    transport: str, kind: type[Hub], door: Any, serve: Serve
) -> None:
    hub = echo_hub(kind, answer_errors=False)

    @hub.on("fail")
    async def fail(socket: Socket) -> None:
        raise ConnectionError("no way")

    server = await serve(hub)
    client = door(transport, server.url)
    await client.connect()
    await client.send(
        '421["fail"]', '42["fail"]', '422["sizes",5]', '42["nobody"]', '423["echo",3]'
    )
    assert await client.packet() == "433[3]"


@HUBS
@TRANSPORTS
@pytest.mark.parametrize("name", ["ack", "welcome", "gap", "error"])
async def test_words_of_the_envelope_are_events_of_socketio(
    name: str, transport: str, kind: type[Hub], door: Any, serve: Serve
) -> None:
    hub = kind()

    @hub.on(name)
    def handle(socket: Socket, data: Any) -> list[Any]:
        hub.emit(name, data)
        return [name, data]

    server = await serve(hub)
    client = door(transport, server.url)
    await client.connect()
    await client.send(f'421["{name}",5]')
    got = sorted([await client.packet(), await client.packet()])
    assert json.loads(got[0][2:])[:2] == [name, 5]
    assert got[1] == f'431[["{name}",5]]'
