"""Shows typed events: annotations are the schema, and what does not fit is refused with its path.

Run: crossband serve typed_events:hub
Try: io("http://127.0.0.1:8000").emit("order", {item: "tea", amount: 0}, console.log)
     wscat -c ws://127.0.0.1:8000/ws -x '{"type": "schemas", "id": 1}'
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

import msgspec

from crossband import Hub, Socket

hub = Hub()


class Order(msgspec.Struct, forbid_unknown_fields=True):
    item: Literal["tea", "coffee"]
    amount: Annotated[int, msgspec.Meta(ge=1, le=10)] = 1
    ready_by: dt.datetime | None = None


class Receipt(msgspec.Struct):
    number: int
    price: float


PRICES = {"tea": 2.5, "coffee": 3.0}
orders: list[Order] = []


@hub.on("order")
async def order(socket: Socket, order: Order) -> Receipt:
    orders.append(order)
    await socket.broadcast.emit("ordered", order)
    return Receipt(number=len(orders), price=PRICES[order.item] * order.amount)


@hub.on("schemas")
async def schemas(socket: Socket) -> dict[str, Any]:
    """Return the JSON Schema of every event: for documentation, or to generate clients."""
    return {name: event.json_schema() for name, event in hub.events.items()}
