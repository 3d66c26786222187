"""The acknowledgements that a client owes."""

from __future__ import annotations

import pytest

from crossband.errors import CrossbandError, Disconnected
from crossband.hub.acks import Acks


async def test_acks_are_bounded_and_fail_when_the_client_leaves() -> None:
    acks = Acks(limit=1)
    answer = acks.expect(1)
    with pytest.raises(CrossbandError, match="owes 1 acknowledgement"):
        acks.expect(2)
    acks.fail()
    with pytest.raises(Disconnected):
        await answer
    assert not acks.resolve(1, "late")
