"""One login for every door: POST /login returns a token for WebSocket, Socket.IO and SSE."""

from __future__ import annotations

import os
import secrets
import time

import jwt
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from crossband import Hub, JWTAuth, Socket, rooms_claim

# Without a secret of your own, tokens are valid until the server restarts.
SECRET = os.environ.get("SECRET") or secrets.token_hex(32)
LIFETIME = 900
# In production, use your database, with hashed passwords.
USERS = {"alice": ("wonderland", ["general", "team-*"]), "bob": ("builder", ["general"])}

hub = Hub(authenticate=JWTAuth(SECRET, audience="chat"), authorize=rooms_claim)


class Login(msgspec.Struct):
    user: str
    password: str


async def login(request: Request) -> Response:
    try:
        shown = msgspec.json.decode(await request.body(), type=Login)
    except msgspec.DecodeError as error:
        return JSONResponse({"error": str(error)}, status_code=422)
    password, rooms = USERS.get(shown.user, ("", []))
    right = secrets.compare_digest(password.encode(), shown.password.encode())
    if not right or shown.user not in USERS:
        return JSONResponse({"error": "Wrong user or password"}, status_code=401)
    claims = {"sub": shown.user, "aud": "chat", "rooms": rooms}
    now = int(time.time())
    token = jwt.encode({**claims, "iat": now, "exp": now + LIFETIME}, SECRET)
    return JSONResponse({"token": token, "expires": now + LIFETIME})


@hub.on("room:join")
async def join(socket: Socket, room: str) -> dict[str, str]:
    await socket.subscribe(room)
    return {"status": "joined"}


@hub.on("room:message")
async def message(socket: Socket, room: str, text: str) -> dict[str, str]:
    await socket.authorize("publish", room)
    assert socket.identity is not None
    await hub.to(room).emit("room:message", {"from": socket.identity.user, "text": text})
    return {"status": "sent"}


app = Starlette(
    routes=[Route("/login", login, methods=["POST"]), Mount("/", hub)], lifespan=hub.lifespan
)
