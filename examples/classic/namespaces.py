"""Shows two namespaces over one connection: /chat for everybody, /admin for those with the key.

Run: ADMIN_KEY=secret crossband serve namespaces:hub
Try: io("http://127.0.0.1:8000/chat").emit("message", "hello"), in a page with socket.io-client
     io("http://127.0.0.1:8000/admin", {auth: {key: "secret"}}).emit("announce", "closing soon")
"""

from __future__ import annotations

import hmac
import os

from crossband import ConnectionRefused, Hub, Socket

# Without a key nobody is admitted.
ADMIN_KEY = os.environ.get("ADMIN_KEY", "")

hub = Hub()
chat = hub.of("/chat")
admin = hub.of("/admin")


@chat.on("message")
async def message(socket: Socket, text: str) -> None:
    await chat.emit("message", {"from": socket.id, "text": text})
    await admin.emit("activity", {"who": socket.id, "length": len(text)})


@admin.use
async def has_the_key(socket: Socket) -> None:
    key = str(socket.handshake.auth.get("key", ""))
    if not ADMIN_KEY or not hmac.compare_digest(key.encode(), ADMIN_KEY.encode()):
        raise ConnectionRefused("Admins only", code="unauthorized", status=401)


@admin.on("announce")
async def announce(socket: Socket, text: str) -> dict[str, int]:
    await chat.emit("announcement", text)
    return {"heard": len(chat.sockets)}
