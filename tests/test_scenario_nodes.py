"""The whole scenario on two nodes, which the client changes in the midst of it."""

from __future__ import annotations

import pytest

from crossband import MemoryBroker
from tests.clients import CLIENTS, NewClient
from tests.conftest import Serve
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
