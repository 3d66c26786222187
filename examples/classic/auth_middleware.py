"""Shows a middleware that lets in who shows a known token, on every door, and says who it is.

Run: crossband serve auth_middleware:hub
Try: io("http://127.0.0.1:8000", {auth: {token: "alice-token"}}), in a page with socket.io-client
     wscat -c 'ws://127.0.0.1:8000/ws?token=alice-token' -x '{"type": "whoami", "id": 1}'
     curl -N -H 'Authorization: Bearer alice-token' http://127.0.0.1:8000/events
"""

from __future__ import annotations

from crossband import ConnectionRefused, Hub, Socket, bearer_token

# In production, use your database; for tokens that expire see ../jwt_app.py.
USERS = {"alice-token": "alice", "bob-token": "bob"}

hub = Hub()


@hub.use
async def known_user(socket: Socket) -> None:
    # From Socket.IO's auth, a header, the subprotocol or the query.
    user = USERS.get(bearer_token(socket.handshake) or "")
    if user is None:
        raise ConnectionRefused("Authentication failed", code="unauthorized", status=401)
    socket.data["user"] = user


@hub.on("connect")
async def connect(socket: Socket) -> None:
    await socket.join(f"user:{socket.data['user']}")


@hub.on("whoami")
async def whoami(socket: Socket) -> dict[str, str]:
    return {"user": socket.data["user"]}


@hub.on("private")
async def private(socket: Socket, to: str, text: str) -> None:
    """Send to all devices of one user."""
    await hub.to(f"user:{to}").emit("private", {"from": socket.data["user"], "text": text})
