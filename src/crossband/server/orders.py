"""What the parent and its workers say to each other: one JSON object per line, on a socket pair."""

from __future__ import annotations

from typing import Final

import msgspec


class Begin(msgspec.Struct, tag="begin", frozen=True):
    """To a worker, before anything else: who it is, and what it inherits."""

    # From 1. A worker that replaces another has its number.
    number: int
    # How many there are.
    workers: int
    # The listening sockets: open files with these numbers. If they are TCP, the port.
    listeners: tuple[int, ...]
    port: int | None
    # The API key that the parent made for this run, for a hub without one.
    api_key: str


class Broker(msgspec.Struct, tag="broker", frozen=True):
    """To a worker that asked: the broker's URL; None if there is none to be had."""

    url: str | None


class Serve(msgspec.Struct, tag="serve", frozen=True):
    """To a worker that is ready: take connections."""


class Show(msgspec.Struct, tag="show", frozen=True):
    """To one worker, when all serve: print the banner, with this note."""

    note: str


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """To a worker: stop gracefully."""

    # Another one serves in its place, on the same sockets.
    replaced: bool = False


class WantBroker(msgspec.Struct, tag="want_broker", frozen=True):
    """From a worker: a hub that names no broker needs one."""


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """From a worker: its application has started, and takes connections on `Serve`."""

    # Seconds that it may take to stop.
    stop_time: float


class Serving(msgspec.Struct, tag="serving", frozen=True):
    """From a worker: it takes connections."""


Order = Begin | Broker | Serve | Show | Stop
Report = WantBroker | Ready | Serving

_encoder: Final = msgspec.json.Encoder()
read_order: Final = msgspec.json.Decoder(Order).decode
read_report: Final = msgspec.json.Decoder(Report).decode


def line(message: Order | Report) -> bytes:
    return _encoder.encode(message) + b"\n"
