"""A connection that a lane carries: its outbox is flushed into the lane."""

from __future__ import annotations

from typing import Generic, TypeVar

from crossband.connection import Connection
from crossband.errors import CloseCode
from crossband.hub.attempt import Admission
from crossband.hub.core import Core
from crossband.transports.lane import Lane

L = TypeVar("L", bound=Lane)


class CarriedConnection(Connection, Generic[L]):
    """A connection that a lane carries, of the server's or over ASGI."""

    __slots__ = ("_lane",)

    def __init__(self, hub: Core, *, limit: int) -> None:
        super().__init__(hub.ticker, limit=limit)
        # None until the client is admitted.
        self._lane: L | None = None

    @property
    def on_lane(self) -> bool:
        """Whether a lane carries it, which reports its end."""
        return self._lane is not None

    @property
    def behind(self) -> bool:
        lane = self._lane
        return lane is not None and lane.paused

    def flush(self) -> None:
        lane = self._lane
        if lane is not None:
            lane.flush(self)

    def attach(self, lane: L) -> None:
        """Be carried by a lane from here on."""
        self._lane = lane
        if self.closed:
            lane.close(CloseCode.NORMAL, "", self)

    async def open(self, lane: L, admission: Admission) -> None:
        """Answer and welcome an admitted client over its lane, and attach it to that."""
        with admission:
            await lane.start()
            self.attach(lane)
            try:
                admission.open()
            except BaseException:
                self.close(CloseCode.INTERNAL_ERROR, "Internal server error")
                raise
            finally:
                await lane.run()

    # As the lane's peer.

    def resume_writing(self) -> None:
        self.drop()
        self.flush()
