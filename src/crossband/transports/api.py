"""The HTTP API besides the doors: status, publishing, and who is in a room."""

from __future__ import annotations

import asyncio
import difflib
import hmac
import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from crossband.auth import Action, Identity
from crossband.errors import EncodeError, EventError, InvalidMessage
from crossband.hub.core import Core
from crossband.hub.presence import NOT_SHOWN, page_of
from crossband.names import check_event, check_name
from crossband.protocol.depth import MESSAGE_DEPTH, is_deeper
from crossband.transports.http import ClientGone, HeaderList, Request

# What other realtime servers call the fields of a broadcast.
_ELSEWHERE: Final = {
    "args": "data",
    "channel": "room",
    "in": "room",
    "message": "data",
    "name": "event",
    "nsp": "namespace",
    "payload": "data",
    "to": "room",
    "topic": "room",
    "type": "event",
}
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
# Characters of an unknown field's name that its refusal repeats.
_NAMED: Final = 64


class Broadcast(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /api/broadcast`.

    Unknown fields are refused: with a misspelt `room`, everybody would get the event.
    """

    event: str
    data: Any = msgspec.UNSET
    room: str | None = None
    namespace: str = "/"


_WANTED: Final = "Show an API key: Authorization: Bearer <key>, or X-API-Key"
_broadcast = msgspec.json.Decoder(Broadcast)


def _unknown_field(name: str) -> InvalidMessage:
    fields = Broadcast.__struct_fields__
    meant = _ELSEWHERE.get(name.lower())
    if meant is None:
        meant = next(iter(difflib.get_close_matches(name.lower(), fields, n=1)), None)
    hint = f"did you mean `{meant}`?" if meant else f"expected {', '.join(fields)}"
    return InvalidMessage(f"Unknown field `{name[:_NAMED]}`; {hint}", path=f"$.{name[:_NAMED]}")


def _check_query(query: Iterable[str]) -> None:
    """Refuse the body's fields in the query: ignoring `room` would reach everybody."""
    for name in query:
        if name in Broadcast.__struct_fields__ or name == "rooms" or name in _ELSEWHERE:
            raise InvalidMessage(f"`{name}` belongs in the body, not in the query")


def _check_names(message: Broadcast) -> None:
    """Raise InvalidMessage, with the path, for a name that cannot be used."""
    path = "$.event"
    try:
        check_event(message.event)
        path = "$.room"
        if message.room is not None:
            check_name(message.room, "a room name")
    except EncodeError as error:
        raise InvalidMessage(str(error), path=path) from None
    if not message.namespace.startswith("/"):
        raise InvalidMessage("Expected a name that starts with `/`", path="$.namespace")


class Api:
    """Answers the routes under the API's path."""

    def __init__(self, hub: Core) -> None:
        self._hub = hub

    async def serve(self, request: Request, route: str) -> None:
        """Serve one request; `route` is the path below the API's."""
        try:
            cors = request.cors(self._hub.settings.cors_origins)
        except EventError as error:
            await request.refuse(error)
            return
        allowed = {"/status": "GET", "/presence": "GET", "/broadcast": "POST"}.get(route)
        closed = route == "/status" and self._hub.settings.status == "off"
        try:
            if allowed is None or closed:
                raise EventError(code="not_found")
            if request.method == "OPTIONS":
                await request.preflight(cors, f"{allowed}, OPTIONS")
            elif request.method != allowed and (request.method, allowed) != ("HEAD", "GET"):
                cors = [*cors, (b"allow", f"{allowed}, OPTIONS".encode())]
                raise EventError(code="method_not_allowed")
            elif route == "/status":
                if self._hub.settings.status == "key":
                    self._demand_key(request)
                await request.respond_json(200, await self._status(request), cors)
            elif route == "/presence":
                await self._presence(request, cors)
            else:
                await self._broadcast(request, cors)
        except ClientGone:
            return
        except EventError as error:
            await request.refuse(error, cors)

    async def _status(self, request: Request) -> dict[str, Any]:
        """Return this node's status, or that of all nodes with `?nodes=all`."""
        nodes = request.first("nodes")
        if nodes is None:
            return self._hub.status.here()
        if nodes != "all":
            raise EventError(
                "`nodes` can only be `all`; without it, this node answers for itself",
                code="invalid_request",
            )
        with request.while_connected():
            return await self._hub.status.everywhere()

    async def _presence(self, request: Request, cors: HeaderList) -> None:
        identity = None
        if self._valid_key(request) is None:
            with request.while_connected():
                identity = await self._identify(request, "subscribe")
            self._hub.count_message(identity.user)
        room = request.first("room")
        after = request.first("after") or "0"
        if room is None:
            raise InvalidMessage("Expected `room` in the query", path="$.room")
        try:
            check_name(room, "a room name")
        except EncodeError as error:
            raise InvalidMessage(str(error), path="$.room") from None
        # Any position fits 16 digits; int() of many is slow.
        if not after.isascii() or not after.isdigit() or len(after) > 16:
            raise InvalidMessage("Expected the `next` of the page before", path="$.after")
        namespace = self._hub.find(request.first("namespace") or "/")
        if namespace is None:
            raise EventError(code="invalid_namespace")
        if identity is not None:
            with request.while_connected():
                await self._hub.access.demand(identity, "subscribe", room)
        if not namespace.presences.declared(room):
            raise EventError(NOT_SHOWN, code="not_found", room=room)
        with request.while_connected():
            page = await namespace.presences.page(room, int(after))
        await request.respond_json(200, msgspec.to_builtins(page_of(room, page)), cors)

    async def _broadcast(self, request: Request, cors: HeaderList) -> None:
        identity = None
        key = self._valid_key(request)
        if key is None:
            with request.while_connected():
                identity = await self._identify(request, "publish")
            self._hub.count_message(identity.user)
        else:
            self._hub.count_publish(key)
        limits = self._hub.settings.limits
        body = await request.body(limits.message_size, time=limits.body_time)
        if is_deeper(body, MESSAGE_DEPTH):
            raise InvalidMessage("Nested too deeply")
        try:
            message = _broadcast.decode(body)
        except msgspec.ValidationError as error:
            if unknown := _UNKNOWN.fullmatch(str(error)):
                raise _unknown_field(unknown[1]) from None
            reason, _, path = str(error).partition(" - at `")
            raise InvalidMessage(reason, path=path.rstrip("`") or "$") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidMessage(f"Not JSON: {error}") from None
        _check_query(request.query)
        _check_names(message)
        namespace = self._hub.find(message.namespace)
        if namespace is None:
            raise EventError(code="invalid_namespace")
        if identity is not None:
            with request.while_connected():
                await self._hub.access.demand(identity, "publish", message.room)
        args = () if message.data is msgspec.UNSET else (message.data,)
        try:
            target = namespace.to(message.room) if message.room is not None else namespace
            rooms = () if message.room is None else (message.room,)
            if self._hub.node.bus.members:
                # The event does not wait for the other nodes to count.
                emission = target.emit(message.event, *args)
                counting = namespace.fanout.count(rooms, ())
                clients, offset = await asyncio.gather(counting, emission)
            else:
                clients = await namespace.fanout.count(rooms, ())
                offset = await target.emit(message.event, *args)
        except EncodeError as error:
            raise InvalidMessage(str(error), path="$.data") from None
        await request.respond_json(
            200, {"success": True, "clients": clients, "offset": offset}, cors
        )

    def _demand_key(self, request: Request) -> None:
        """Raise EventError unless the request shows an API key."""
        if self._valid_key(request) is None:
            raise self._no_key(request, _WANTED)

    def _no_key(self, request: Request, wanted: str) -> EventError:
        """Note a request without a valid key, and return its error."""
        if _shown_key(request):
            self._hub.traffic.refused_key(request.address)
        else:
            self._hub.traffic.refused_request("unauthorized")
        return EventError(wanted, code="unauthorized")

    def _valid_key(self, request: Request) -> str | None:
        """Return the request's API key; None if it is not one of ours."""
        shown = _shown_key(request)
        # Every key is compared, each in constant time.
        keys = self._hub.settings.api_keys
        matches = [hmac.compare_digest(shown.encode(), key.encode()) for key in keys]
        return shown if any(matches) else None

    async def _identify(self, request: Request, action: Action) -> Identity:
        """Return whose token a request shows, in order to do this. Raises EventError."""
        access = self._hub.access
        # A token only identifies the user. What that user may do, `authorize` decides.
        tokens = access.authenticate is not None and access.authorize is not None
        if tokens and "x-api-key" not in request.headers:
            try:
                identity = await access.identify(request.handshake("http"))
            except EventError as error:
                self._hub.traffic.refused_key(request.address, error.code)
                raise
            if identity is not None:
                return identity
        if not tokens and not self._hub.settings.api_keys:
            what = "Publishing" if action == "publish" else "Reading presence"
            raise EventError(
                f"{what} over HTTP is off: set api_keys (CROSSBAND_API_KEYS)", code="refused"
            )
        raise self._no_key(
            request, f"{_WANTED}; or a token that may {action}" if tokens else _WANTED
        )


def _shown_key(request: Request) -> str:
    """Return a request's API key, valid or not; "" for none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
