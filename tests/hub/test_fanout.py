"""What reaches the outboxes: fan-out puts it there itself, as each connection's `push` would."""

from __future__ import annotations

import asyncio
from typing import Any, Literal, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from crossband.broker import Publication
from crossband.codecs import ENVELOPE, PLAIN, SOCKETIO, Codec
from crossband.errors import CloseCode
from crossband.protocol import payload
from tests.bare import BareHub
from tests.link import Link, join

LIMIT = 2_000


class Emit(NamedTuple):
    """An event to everybody, of about so many bytes."""

    size: int
    cursor: str | None
    policy: Literal["drop_oldest", "latest"] | None
    key: int


class Act(NamedTuple):
    """Something that happens to one client."""

    client: int
    what: Literal["take", "stall", "go on", "close"]


emits = st.builds(
    Emit,
    st.sampled_from([1, 100, LIMIT // 2, LIMIT, 2 * LIMIT]),
    st.sampled_from([None, "e-7"]),
    st.sampled_from([None, "drop_oldest", "latest"]),
    st.integers(0, 1),
)
acts = st.builds(Act, st.integers(0, 2), st.sampled_from(["take", "stall", "go on", "close"]))
steps = st.lists(emits | acts | st.just("tick"), max_size=20)


def state_of(link: Link) -> tuple[Any, ...]:
    waiting = [wire.messages for wire in link.queue]
    evicted = link.evicted and (link.evicted.reason, link.evicted.backlog)
    return link.taken, waiting, link.queued, link.dirty, link.closed, link.code, evicted


async def run(codecs: list[Codec], steps: list[Any]) -> None:
    hub = BareHub()
    await hub.start()
    fanout = hub.root.fanout
    ticker = hub.ticker
    # Of each client the connection that fan-out writes to, and one like it that is pushed to.
    pairs: list[tuple[Link, Link]] = []
    for codec in codecs:
        real, like = Link(ticker, limit=LIMIT), Link(ticker, limit=LIMIT)
        await join(hub, real, codec=codec)
        pairs.append((real, like))
    await asyncio.sleep(0)
    for real, _ in pairs:
        real.take()
        real.taken.clear()
    for step in steps:
        if isinstance(step, Emit):
            data = payload.encode(["x" * step.size])
            # What has a policy is not recorded.
            policy = None if step.cursor else step.policy
            publication = Publication(
                "/", "event", data, cursor=step.cursor, policy=policy, key=step.key
            )
            ticker.pressed = False
            for codec, (_, like) in zip(codecs, pairs, strict=True):
                wire = fanout.encode(codec, publication)
                volatile = step.cursor is None and policy is None
                if wire is not None and not (volatile and like.behind):
                    like.push(wire)
            ticker.pressed, pressed = False, ticker.pressed
            fanout.deliver(publication)
            assert ticker.pressed is pressed
        elif isinstance(step, Act):
            for link in pairs[step.client]:
                if step.what == "take":
                    link.take()
                elif step.what == "close":
                    link.close(CloseCode.NORMAL, "", now=True)
                else:
                    link.stalled = step.what == "stall"
        else:
            await asyncio.sleep(0)
        for real, like in pairs:
            assert state_of(real) == state_of(like)
    await hub.stop()


@settings(max_examples=60, deadline=None, database=None)
@given(st.permutations([ENVELOPE, SOCKETIO, PLAIN]), steps)
def test_fanout_leaves_what_push_would(codecs: list[Codec], steps: list[Any]) -> None:
    asyncio.run(run(codecs, steps))
