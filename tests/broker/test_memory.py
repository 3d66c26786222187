"""What the memory broker bounds beyond the contract."""

from __future__ import annotations

import pytest

from crossband import MemoryBroker, Publication
from crossband.broker import memory
from crossband.errors import Gap
from crossband.protocol import payload


async def test_logs_of_namespaces_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_LOGS", 3)
    broker = MemoryBroker()
    cursors = {}
    for name in ("/a", "/b", "/c"):
        cursors[name] = broker.publish(Publication(name, "x", payload.encode([])))
    # Used again, so that /b is the one idle longest.
    broker.publish(Publication("/a", "x", payload.encode([])))
    broker.publish(Publication("/d", "x", payload.encode([])))
    assert len(await broker.history("/a", str(cursors["/a"]))) == 1
    with pytest.raises(Gap, match="unknown"):
        await broker.history("/b", str(cursors["/b"]))
    # Made anew, its numbers start over under another epoch: old cursors are not misread.
    broker.publish(Publication("/b", "y", payload.encode([])))
    with pytest.raises(Gap, match="unknown"):
        await broker.history("/b", str(cursors["/b"]))
