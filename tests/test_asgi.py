"""The hub as an ASGI application: the examples on real servers, and its start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import os
import re
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import aiohttp
import httpx
import pytest
import socketio

from tests.clients import (
    Client,
    EventFailed,
    EventStreamClient,
    PythonSocketIOClient,
    Refused,
    WebSocketClient,
)
from tests.clients.base import WAIT

EXAMPLES = Path(__file__).parents[1] / "examples"

# How each server is run; all print the address that port 0 became.
SERVERS = {
    "uvicorn": ("uvicorn", "--port", "0"),
    "uvicorn-wsproto": ("uvicorn", "--port", "0", "--ws", "wsproto"),
    # One worker, in a process of its own, which gets no signal.
    "hypercorn": ("hypercorn", "--bind", "127.0.0.1:0"),
    "hypercorn-inline": ("hypercorn", "--bind", "127.0.0.1:0", "--workers", "0"),
}
LIFESPANS = {
    "fastapi_app": ("FastAPI(lifespan=hub.lifespan)", "FastAPI()"),
    "starlette_app": ("    lifespan=lifespan,\n", ""),
}
# Seconds from SIGTERM to the end of the process, whatever is open.
EXIT_TIME = 5.0


class MountedSocketIOClient(PythonSocketIOClient):
    """Socket.IO below a mount point, which a client gives as the path, not in the address."""

    transports: ClassVar[Sequence[str]]

    async def _open(self) -> None:
        self._http = aiohttp.ClientSession(trust_env=False)
        self._client = client = socketio.AsyncClient(
            reconnection=False, http_session=self._http, handle_sigint=False
        )
        client.on("disconnect", self._on_disconnect)
        client.on("*", self._on_event)
        try:
            await client.connect(
                self.url,
                auth={"session": secrets.token_urlsafe(24)},
                socketio_path="realtime/socket.io",
                transports=self.transports,
                wait_timeout=WAIT,
            )
        except BaseException:
            await self._http.close()
            raise
        self.sid = client.get_sid()


class PollingClient(MountedSocketIOClient):
    kind = "polling"
    transports = ("polling",)


class UpgradingClient(MountedSocketIOClient):
    kind = "upgrading"
    transports = ("polling", "websocket")


@dataclass
class Running:
    """A server in a process of its own."""

    process: asyncio.subprocess.Process
    url: str
    # Everything it printed.
    output: list[str]


@contextlib.asynccontextmanager
async def running(server: str, app: str, directory: Path) -> AsyncIterator[Running]:
    """Run an application of a directory on a server; it is killed if it is still there."""
    module, *options = SERVERS[server]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *options, f"{app}:app"),
        cwd=directory,
        # hypercorn puts the application's folder on the path, uvicorn the current one.
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output: list[str] = []
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            output.append(line.decode())
            found = re.search(r"[Rr]unning on (http://127\.0\.0\.1:\d+)", output[-1])
            if found is not None:
                address.set_result(found[1])
        if not address.done():
            address.set_exception(RuntimeError("".join(output)))

    reader = asyncio.create_task(read())
    try:
        yield Running(process, await asyncio.wait_for(address, 30), output)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reader


def application(app: str, lifespan: str, directory: Path) -> Path:
    """Return the folder of an example, or of a copy whose framework forwards no lifespan."""
    if lifespan == "forwarded":
        return EXAMPLES
    source = (EXAMPLES / f"{app}.py").read_text()
    forwarded, bare = LIFESPANS[app]
    assert source.count(forwarded) == 1
    (directory / f"{app}.py").write_text(source.replace(forwarded, bare))
    return directory


CASES = [
    *itertools.product(("uvicorn", "hypercorn"), LIFESPANS, ("forwarded", "not-forwarded")),
    ("uvicorn-wsproto", "fastapi_app", "not-forwarded"),
    ("uvicorn-wsproto", "starlette_app", "forwarded"),
    ("hypercorn-inline", "fastapi_app", "forwarded"),
    ("hypercorn-inline", "starlette_app", "not-forwarded"),
]


@pytest.mark.parametrize(("server", "app", "lifespan"), CASES, ids=map("-".join, CASES))
async def test_mounted_hub_from_first_client_to_sigterm(
    server: str, app: str, lifespan: str, tmp_path: Path
) -> None:
    if "wsproto" in server and importlib.util.find_spec("wsproto") is None:
        pytest.skip("wsproto is not installed")
    directory = application(app, lifespan, tmp_path)
    async with (
        running(server, app, directory) as program,
        contextlib.AsyncExitStack() as stack,
        httpx.AsyncClient(base_url=program.url, trust_env=False) as http,
    ):
        realtime = f"{program.url}/realtime"
        clients: list[Client] = []
        for driver in (WebSocketClient, UpgradingClient, PollingClient, EventStreamClient):
            client: Client = driver()
            stack.push_async_callback(client.close)
            url = program.url if isinstance(client, MountedSocketIOClient) else realtime
            await client.connect(url)
            clients.append(client)

        # What any client sends reaches all, and is acknowledged to it.
        for client in clients:
            text = f"from {client.kind}"
            assert await client.call("chat:message", {"text": text}) == {"status": "received"}
            for other in clients:
                event = await other.next_event("chat:message")
                assert event.data == {"from": client.sid, "text": text}

        # So does what an ordinary route publishes.
        response = await http.post("/messages", json={"text": "from a route"})
        assert response.status_code == 200, response.text
        for client in clients:
            event = await client.next_event("chat:message")
            assert event.data == {"from": "http", "text": "from a route"}
            assert event.offset == response.json()["offset"]

        # Refused with an HTTP status, before any upgrade; and what does not fit is told.
        stranger = WebSocketClient()
        with pytest.raises(Refused) as refused:
            await stranger.connect(realtime, "/nowhere")
        assert refused.value.status == 404
        response = await http.get("/realtime/events", headers={"Origin": "http://other.example"})
        assert (response.status_code, response.json()["code"]) == (403, "origin_not_allowed")
        for client in clients:
            with pytest.raises(EventFailed) as failed:
                await client.call("chat:message", {"text": ""})
            assert (failed.value.code, failed.value.error["path"]) == ("invalid_message", "$.text")

        # A WebSocket, an upgraded one, a poll and an event stream are open.
        status = (await http.get("/realtime/api/status")).json()
        assert status["clients"] == {"total": 4, "websocket": 2, "polling": 1, "sse": 1}

        program.process.terminate()
        async with asyncio.timeout(EXIT_TIME):
            code = await program.process.wait()
        # uvicorn, once it has stopped gracefully, dies of the signal it was sent (since 0.29).
        assert code in ({0, -signal.SIGTERM} if "uvicorn" in server else {0})
        for client in clients:
            event = await client.next_event("server:shutdown")
            assert event.data == {"message": "Server shutting down"}
            await client.gone.wait()
        websocket = clients[0]
        assert isinstance(websocket, WebSocketClient)
        assert websocket.connection is not None
        assert websocket.connection.close_code == 1001
    assert "Traceback" not in "".join(program.output)
