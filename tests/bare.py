"""A hub without doors, whose inside the tests may touch."""

from __future__ import annotations

from typing import Any, Unpack

from crossband.broker import Broker
from crossband.connection import Ticker
from crossband.hub.access import Authenticate, Authorize
from crossband.hub.core import Core
from crossband.hub.public import PublicHub
from crossband.settings import HubSettings, Settings, changed


class _NoDoors:
    def start(self, core: Core) -> None:
        pass

    async def stop(self) -> None:
        pass


class BareHub(PublicHub):
    """What a door is given, and what an application calls, in one."""

    def __init__(
        self,
        broker: Broker | str | None = None,
        *,
        authenticate: Authenticate | None = None,
        authorize: Authorize | None = None,
        **settings: Unpack[HubSettings],
    ) -> None:
        core = Core(
            broker, authenticate, authorize, changed(Settings(), dict(settings)), _NoDoors()
        )
        super().__init__(core)
        self.core = core
        self.node = core.node
        self.root = core.root
        self.admit = core.admit
        self.leave = core.leave
        self.find = core.find
        self.run_to_end = core.run_to_end

    @property
    def ticker(self) -> Ticker:
        return self.core.ticker

    @property
    def catching_up(self) -> int:
        return self.root.replays.count

    async def start(self) -> None:
        await self.core.start()

    async def stop(self) -> None:
        await self.core.stop()


def inside(hub: Any) -> Core:
    """Return what is behind a public hub."""
    core = hub._core
    assert isinstance(core, Core)
    return core
