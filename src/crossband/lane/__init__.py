"""The fast lane: uvicorn's two protocols, which can hand connections over to the hub."""

from crossband.lane.fallback import WebSocketProtocol
from crossband.lane.http import HTTPProtocol
from crossband.lane.stream import StreamLane
from crossband.lane.used import USED
from crossband.lane.websocket import WebSocketLane

__all__ = ["USED", "HTTPProtocol", "StreamLane", "WebSocketLane", "WebSocketProtocol"]
