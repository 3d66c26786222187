"""Shows acknowledgements both ways: {status, messageId} for the sender, and one asked of a client.

Run: crossband serve acknowledgements:hub
Try: io("http://127.0.0.1:8000").emit("message", "hello", console.log), with socket.io-client
     wscat -c ws://127.0.0.1:8000/ws -x '{"type": "message", "data": "hello", "id": 1}'
"""

from __future__ import annotations

import uuid

from crossband import AckTimeout, EventError, Hub, Socket

hub = Hub()


@hub.on("message")
async def message(socket: Socket, text: str) -> dict[str, str]:
    message_id = str(uuid.uuid4())
    await socket.broadcast.emit("message", {"messageId": message_id, "text": text})
    # A handler's return value is the acknowledgement, for clients that ask for one.
    return {"status": "received", "messageId": message_id}


@hub.on("ask")
async def ask(socket: Socket, who: str, question: str) -> dict[str, object]:
    """Ask another client, and return its answer."""
    other = hub.sockets.get(who)
    if other is None:
        raise EventError("There is nobody of that id", code="nobody")
    try:
        answer = await other.timeout(5).emit_with_ack("question", question)
    except AckTimeout:
        return {"status": "no answer"}
    return {"status": "answered", "answer": answer}
