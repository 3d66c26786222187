"""The fast lane: uvicorn's two protocols, lending their connections to the hub."""

from crossband.lane.protocols import USED, HTTPProtocol, WebSocketProtocol
from crossband.lane.stream import StreamLane
from crossband.lane.websocket import WebSocketLane

__all__ = ["USED", "HTTPProtocol", "StreamLane", "WebSocketLane", "WebSocketProtocol"]
