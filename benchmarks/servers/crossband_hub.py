"""Crossband as it is shipped: limits, history and bounded outboxes on, everybody in a room."""

from __future__ import annotations

from crossband import Hub, Limits, Socket

# Known to the load generator; on 127.0.0.1 only.
API_KEY = "benchmark"


def make_hub(broker: str | None = None) -> Hub:
    """Return the hub that is measured."""
    # The echo client sends as fast as it is answered; the meters run all the same.
    limits = Limits(message_rate=1e7, byte_rate=1e10)
    hub = Hub(api_keys=(API_KEY,), limits=limits, broker=broker)
    plain = hub.of("/plain", plain=True)

    @hub.on("connect")
    async def connect(socket: Socket) -> None:
        await socket.join("all")

    @hub.on("echo")
    async def answer(socket: Socket, text: str) -> str:
        return text

    @plain.on("message")
    async def echo(socket: Socket, text: str) -> None:
        await socket.emit("message", text)

    return hub
