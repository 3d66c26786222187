"""The whole scenario on two nodes, which the client changes in the midst of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from crossband import MemoryBroker
from crossband.names import new_id
from tests.clients import CLIENTS, NewClient
from tests.conftest import Serve
from tests.engines import Servers, shared, shared_cluster, shared_sentinels
from tests.far import Engine
from tests.test_scenario import scenario, scenario_hub, site_of


@pytest.mark.node
@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("first", [0, 1], ids=["from one", "from the other"])
async def test_scenario_on_two_nodes(
    kind: str, first: int, serve: Serve, new_client: NewClient
) -> None:
    broker = MemoryBroker()
    hubs = [scenario_hub(broker), scenario_hub(broker.peer())]
    async with site_of(serve, hubs, first) as site:
        await scenario(kind, site, new_client)


@pytest.mark.node
@pytest.mark.parametrize("kind", CLIENTS)
async def test_scenario_on_two_nodes_with_a_broker_elsewhere(
    kind: str, serve: Serve, new_client: NewClient
) -> None:
    engine = Engine(MemoryBroker(), seed=len(kind))
    hubs = [scenario_hub(engine.node()), scenario_hub(engine.node())]
    async with site_of(serve, hubs) as site:
        await scenario(kind, site, new_client)


# Every client on Redis; on the others, one of each door.
DOORS = ("websocket", "sse", "socket.io-client upgrading")
SERVERS: dict[str, Callable[[], Servers]] = {
    "redis": lambda: shared("redis"),
    "valkey": lambda: shared("valkey"),
    "sentinel": shared_sentinels,
    "cluster": shared_cluster,
}


@pytest.mark.node
@pytest.mark.parametrize(
    ("servers", "kind"),
    [(servers, kind) for servers in SERVERS for kind in (CLIENTS if servers == "redis" else DOORS)],
)
async def test_scenario_on_two_nodes_that_share_real_servers(
    servers: str, kind: str, serve: Serve, new_client: NewClient
) -> None:
    url = f"{SERVERS[servers]().url}?prefix={new_id()}"
    hubs = [scenario_hub(url), scenario_hub(url)]
    async with site_of(serve, hubs) as site:
        await scenario(kind, site, new_client)
