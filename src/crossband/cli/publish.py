"""`crossband publish`: publish one event, through a server's HTTP API or a hub's broker."""

from __future__ import annotations

from typing import Any, NamedTuple

import httpx
import msgspec

from crossband.client.doors import parse_url
from crossband.client.errors import reason_of
from crossband.errors import BrokerUnavailable, CrossbandError, EncodeError

# Seconds; at most, a publication waits for the broker.
TIMEOUT = 10.0
# Of a broker: someone waits, and a server that is not there may come back.
BROKER_TIMEOUT = 2.0


class PublishError(CrossbandError):
    """Nothing was published; the message says why and what to do."""


class Published(NamedTuple):
    """What the server answered."""

    clients: int
    offset: str | None


def publish(
    url: str,
    body: dict[str, Any],
    *,
    api_key: str | None,
    token: str | None = None,
    verify: bool = True,
) -> Published:
    """Post `{event, data, room?, namespace?}` to a server.

    Takes an API key or a token that may publish. Raises PublishError, or ValueError if `url`
    is not a URL.
    """
    shown = token if api_key is None else api_key
    headers = {} if shown is None else {"Authorization": f"Bearer {shown}"}
    address = locate(url)
    try:
        response = httpx.post(
            address,
            content=msgspec.json.encode(body),
            headers={"Content-Type": "application/json", **headers},
            timeout=TIMEOUT,
            # Without TLS, skip reading the machine's certificates: 30 ms.
            verify=verify and address.startswith("https:"),
        )
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as exc:
        raise PublishError(str(exc)) from exc
    except httpx.TimeoutException as exc:
        raise PublishError(f"{url}: no answer within {TIMEOUT:g} s") from exc
    except httpx.HTTPError as exc:
        raise PublishError(f"{url}: {reason_of(exc)}") from exc
    if response.status_code != 200:
        raise PublishError(_refusal(response, api_key, token))
    try:
        answer = msgspec.json.decode(response.content, type=_Answer)
    except msgspec.DecodeError as exc:
        raise PublishError(
            f"{response.url} did not answer like a Crossband server ({exc})"
        ) from exc
    return Published(answer.clients, answer.offset)


def publish_to_broker(url: str, body: dict[str, Any]) -> str | None:
    """Publish `{event, data, room?, namespace?}` without a server; return the cursor.

    Raises PublishError, or ValueError if `url` cannot be read.
    """
    try:
        # An extra.
        from crossband.publisher import Publisher

        with Publisher(url, timeout=BROKER_TIMEOUT) as publisher:
            target = publisher.of(body.get("namespace", "/"))
            if "room" in body:
                target = target.to(body["room"])
            return target.emit(body["event"], body["data"])
    except (ImportError, EncodeError, BrokerUnavailable) as exc:
        raise PublishError(str(exc)) from exc


def locate(url: str) -> str:
    """Return the URL of the broadcast route, given a server's or mount point's URL."""
    parts = parse_url(url, ("http", "https"))
    path = parts.path.rstrip("/")
    if not path.endswith("/broadcast"):
        path += "/api/broadcast"
    return parts._replace(path=path).geturl()


class _Answer(msgspec.Struct):
    clients: int
    offset: str | None = None


class _Error(msgspec.Struct):
    error: str
    reason: str | None = None
    path: str | None = None


def _refusal(response: httpx.Response, api_key: str | None, token: str | None) -> str:
    said = f"HTTP {response.status_code} from {response.url}"
    if response.status_code == 401 and api_key is None and token is None:
        return f"{said}: the server requires an API key (--api-key) or a token (--token)"
    if response.status_code == 401 and api_key is not None:
        return f"{said}: the server does not accept this API key"
    try:
        error = msgspec.json.decode(response.content, type=_Error)
    except msgspec.DecodeError:
        return f"{said}: is this a Crossband server?"
    reason = ""
    if error.reason:
        reason = f" ({error.reason}" + (f" at {error.path})" if error.path else ")")
    return f"{said}: {error.error}{reason}"
