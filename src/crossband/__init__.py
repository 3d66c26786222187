"""Crossband: publish once; every client on every transport gets it, in one order.

One hub with three doors: raw WebSocket, Socket.IO and Server-Sent Events.
"""

from crossband.asgi import Hub
from crossband.auth import Identity, Rights, bearer_token, rooms_claim
from crossband.auth.jwt import JWTAuth
from crossband.broker import Broker, Member, Members, Publication, Session
from crossband.broker.memory import MemoryBroker
from crossband.errors import (
    AckTimeout,
    BrokerUnavailable,
    CloseCode,
    ConnectionRefused,
    CrossbandError,
    Disconnected,
    EncodeError,
    EventError,
    InvalidMessage,
    InvalidName,
    Unauthorized,
)
from crossband.handlers.events import EventSchema
from crossband.handshake import Handshake
from crossband.hub.directory import NamespacePattern
from crossband.hub.emission import Emission
from crossband.hub.namespace import Emitter, Namespace, Socket
from crossband.hub.remote import RemoteSocket
from crossband.limits import Limits
from crossband.settings import Settings
from crossband.version import __version__

__all__ = [
    "AckTimeout",
    "Broker",
    "BrokerUnavailable",
    "CloseCode",
    "ConnectionRefused",
    "CrossbandError",
    "Disconnected",
    "Emission",
    "Emitter",
    "EncodeError",
    "EventError",
    "EventSchema",
    "Handshake",
    "Hub",
    "Identity",
    "InvalidMessage",
    "InvalidName",
    "JWTAuth",
    "Limits",
    "Member",
    "Members",
    "MemoryBroker",
    "Namespace",
    "NamespacePattern",
    "Publication",
    "RemoteSocket",
    "Rights",
    "Session",
    "Settings",
    "Socket",
    "Unauthorized",
    "__version__",
    "bearer_token",
    "rooms_claim",
]
