"""The event stream door, and event streams of other servers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

import httpx
import httpx_sse

from crossband.client.errors import Lost, Refused, error_text, reason_of, status_error
from crossband.client.listener import CONNECT_TIMEOUT, Event, Listener, Notice
from crossband.client.values import encode, json_of, object_of

# Seconds without even a keep-alive comment before the peer counts as gone.
SILENCE: Final = 90.0
_HINT: Final = "http://HOST:PORT/events"


async def stream(listener: Listener) -> AsyncGenerator[Event | Notice, None]:
    """Yield what the door sends until the stream ends. Raises Refused or Lost."""
    # JSON too, because otherwise a refusal would come as a stream that ends.
    accepted = "text/event-stream, application/json"
    headers = {"Accept": accepted, "Cache-Control": "no-store", **listener.headers}
    if listener.offset is not None:
        headers["Last-Event-ID"] = listener.offset
    timeout = httpx.Timeout(CONNECT_TIMEOUT, read=SILENCE)
    # Without TLS, skip reading the machine's certificates: 30 ms at every attempt.
    verify = listener.tls() or False
    try:
        async with (
            httpx.AsyncClient(timeout=timeout, verify=verify) as client,
            client.stream("GET", listener.address("session", ""), headers=headers) as response,
        ):
            if response.status_code != 200:
                await response.aread()
                raise status_error(response.status_code, response.content, str(response.url))
            kind = response.headers.get("content-type", "no content type")
            if not kind.startswith("text/event-stream"):
                raise Refused(f"{response.url} is not an event stream ({kind}); is it {_HINT}?")
            welcomed = False
            async for sse in httpx_sse.EventSource(response).aiter_sse():
                if sse.event == "welcome" and not welcomed:
                    welcomed = True
                    yield listener.welcomed(object_of(sse.data))
                elif sse.event == "gap":
                    yield listener.missed(object_of(sse.data))
                elif sse.event == "error":
                    yield Notice("error", error_text(object_of(sse.data)))
                elif sse.event == "server:shutdown":
                    message = object_of(sse.data).get("message")
                    yield Notice("shutdown", f"the server is stopping: {message}")
                # httpx-sse also reports blocks without data, such as a lone retry.
                elif sse.data:
                    if not welcomed:  # another server's stream
                        welcomed = True
                        yield listener.connected(False)
                    offset = sse.id if sse.id and sse.id != listener.offset else None
                    listener.offset = offset or listener.offset
                    if sse.event == "event:named":
                        named = object_of(sse.data)
                        yield Event(str(named.get("event")), encode(named.get("data")), offset)
                    else:
                        yield Event(sse.event or "message", json_of(sse.data), offset)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as exc:
        raise Refused(f"{listener.url}: {exc}") from exc
    except httpx.ReadTimeout as exc:
        raise Lost(f"heard nothing for {SILENCE:g} s") from exc
    except httpx.HTTPError as exc:
        raise Lost(reason_of(exc)) from exc
    raise Lost("the stream ended")
