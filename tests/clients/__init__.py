"""Real clients of every door, behind one interface, for the tests."""

from __future__ import annotations

from collections.abc import Callable

from tests.clients.base import Client, Event, EventFailed, Refused
from tests.clients.eventstream import EventStreamClient
from tests.clients.node import (
    NodeRunner,
    OfficialClient,
    OfficialPollingClient,
    OfficialUpgradingClient,
    OfficialWebSocketClient,
)
from tests.clients.pythonsocketio import PythonSocketIOClient, PythonSocketIOPollingClient
from tests.clients.websocket import WebSocketClient

CLIENTS: dict[str, type[Client]] = {
    client.kind: client
    for client in (
        OfficialPollingClient,
        OfficialWebSocketClient,
        OfficialUpgradingClient,
        PythonSocketIOClient,
        PythonSocketIOPollingClient,
        WebSocketClient,
        EventStreamClient,
    )
}

NewClient = Callable[[str], Client]

__all__ = [
    "CLIENTS",
    "Client",
    "Event",
    "EventFailed",
    "EventStreamClient",
    "NewClient",
    "NodeRunner",
    "OfficialClient",
    "OfficialPollingClient",
    "OfficialUpgradingClient",
    "OfficialWebSocketClient",
    "PythonSocketIOClient",
    "PythonSocketIOPollingClient",
    "Refused",
    "WebSocketClient",
]
