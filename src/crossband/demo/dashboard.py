"""The dashboard: the server's own numbers once a second, and notifications.

Both are events of a namespace, so a client whose connection was cut catches up from its cursor.
A new page, and one that was away for longer than the history, reads the past over HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from types import TracebackType
from typing import Annotated, Any, Final, Literal, Self

import msgspec
import psutil
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from crossband import EventError, Hub, InvalidMessage

logger: Final = logging.getLogger("crossband.demo")

# Seconds between two samples.
INTERVAL: Final = 1.0
# Five minutes of samples, which a newly opened page starts with.
SAMPLES: Final = 300
NOTIFICATIONS: Final = 20
# Bytes of a notification's JSON; its texts may have a fifth of that, if all of it is escaped.
MAX_BODY: Final = 16 * 1024

LEVELS: Final = ("info", "success", "warning", "error")


class Processor(msgspec.Struct):
    """CPU use in percent: the machine's, of all cores, and the server's, of one core."""

    machine: float
    server: float


class Memory(msgspec.Struct):
    """Memory in use, in bytes; `total` is the machine's."""

    machine: int
    server: int
    total: int


class Clients(msgspec.Struct):
    """Connections of the whole hub, by transport."""

    websocket: int
    polling: int
    sse: int


class Messages(msgspec.Struct):
    """Messages per second of the whole hub, from clients and to clients."""

    received: float
    delivered: float


class Sample(msgspec.Struct):
    """The event `sample`; `time` is in seconds since 1970."""

    time: float
    cpu: Processor
    memory: Memory
    clients: Clients
    messages: Messages


class Notification(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /api/notify`."""

    message: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
    title: Annotated[str, msgspec.Meta(max_length=100)] = ""
    level: Literal["info", "success", "warning", "error"] = "info"


class Dashboard:
    """Publishes a hub's numbers and posted notifications in namespace `/dashboard`.

    The events are `sample`, once a second inside `async with dashboard`, and `notification`.
    `routes` are for the application around the hub.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.namespace: Final = hub.of("/dashboard")
        self.samples: deque[Sample] = deque(maxlen=SAMPLES)
        # As they were published, each with its cursor as `offset`.
        self.notifications: deque[dict[str, Any]] = deque(maxlen=NOTIFICATIONS)
        self.routes: Final = [
            Route("/api/notify", self._serve_notify, methods=["POST"]),
            Route("/api/metrics", self._serve_metrics, methods=["GET"]),
        ]
        self._process = psutil.Process()
        # When the counters were last read (seconds of time.monotonic()), and their values.
        self._read: tuple[float, dict[str, int]] = (0.0, {})
        # None while not sampling.
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._begin()
        self._task = asyncio.create_task(self._sample_for_ever())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    # Samples.

    async def _sample_for_ever(self) -> None:
        due = time.monotonic()
        while True:
            # A late sample does not hurry the next: rates use the seconds that really passed.
            due = max(due + INTERVAL, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            try:
                sample = self._sample()
            except psutil.Error:
                logger.exception("cannot read the server's numbers")
                continue
            self.samples.append(sample)
            self.namespace.emit("sample", sample)

    def _begin(self) -> None:
        # The first value of both is 0: they measure the time since the last call.
        psutil.cpu_percent()
        self._process.cpu_percent()
        self._read = time.monotonic(), self.hub.status()["messages"]

    def _sample(self) -> Sample:
        # Reads /proc for about 0.2 ms: not worth a thread.
        status = self.hub.status()
        memory = psutil.virtual_memory()
        before, counted = self._read
        self._read = now, messages = time.monotonic(), status["messages"]
        seconds = now - before
        clients = status["clients"]
        return Sample(
            time=round(time.time(), 3),
            cpu=Processor(psutil.cpu_percent(), self._process.cpu_percent()),
            memory=Memory(
                memory.total - memory.available, self._process.memory_info().rss, memory.total
            ),
            clients=Clients(clients["websocket"], clients["polling"], clients["sse"]),
            messages=Messages(
                round((messages["received"] - counted["received"]) / seconds, 1),
                round((messages["delivered"] - counted["delivered"]) / seconds, 1),
            ),
        )

    async def _serve_metrics(self, request: Request) -> Response:
        return _json(
            200,
            {
                "interval": INTERVAL,
                "samples": list(self.samples),
                "notifications": list(self.notifications),
            },
        )

    # Notifications.

    async def notify(self, notification: Notification) -> str | None:
        """Publish a notification; return its cursor."""
        published = {**msgspec.to_builtins(notification), "time": round(time.time(), 3)}
        offset = await self.namespace.emit("notification", published)
        self.notifications.append({**published, "offset": offset})
        return offset

    async def _serve_notify(self, request: Request) -> Response:
        try:
            _check_origin(request)
            notification = _notification(await _body(request))
        except EventError as error:
            return _json(error.status, {"type": "error", **error.to_dict()})
        except ClientDisconnect:
            return Response(status_code=400)
        offset = await self.notify(notification)
        clients = len(self.namespace.sockets)
        return _json(200, {"success": True, "clients": clients, "offset": offset})


def _notification(body: bytes) -> Notification:
    """Decode and check a notification. Raises InvalidMessage, which names the field."""
    try:
        notification = msgspec.json.decode(body, type=Notification)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        field = path.rstrip("`") or None
        if field == "level":
            reason = f"Expected one of {', '.join(LEVELS)}"
        elif named := re.fullmatch(
            r"Object (?:missing required|contains unknown) field `(.*)`", reason
        ):
            field = named[1]
        raise _invalid(reason, field) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _invalid(f"Not JSON: {error}", None) from None
    if not notification.message.strip():
        raise _invalid("Expected more than white space", "message")
    return notification


def _invalid(reason: str, field: str | None) -> InvalidMessage:
    if field is None:
        return InvalidMessage(reason)
    return InvalidMessage(reason, path=f"$.{field}", field=field)


def _check_origin(request: Request) -> None:
    """Refuse posts from other sites' pages, which browsers send without preflight."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise EventError(code="origin_not_allowed")


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise EventError(code="message_too_large", maxSize=MAX_BODY)
    return body


def _json(status: int, value: Any) -> Response:
    return Response(
        msgspec.json.encode(value),
        status,
        headers={"Cache-Control": "no-store"},
        media_type="application/json",
    )
