"""What comes in of one namespace: in order, without holes, or with a loss that is told."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, Final

import msgspec

from crossband.broker import Publication
from crossband.broker.redis.appends import new_log_id
from crossband.broker.redis.base import Base
from crossband.broker.redis.copy import Copy
from crossband.broker.redis.frames import Frame, decode_entries, decode_entry, decode_frame
from crossband.broker.redis.keys import tag_of
from crossband.broker.redis.link import Arg
from crossband.broker.redis.outgoing import Batch
from crossband.broker.redis.scripts import FORGET, READ, TEAR, TOP
from crossband.errors import BrokerUnavailable

logger: Final = logging.getLogger("crossband")

# Publications read at once.
PAGE: Final = 100
# Sockets whose own publications are read at once.
SOCKETS: Final = 200
# Bytes of what may wait while something is read; beyond it is read instead.
MAX_HELD: Final = 67_108_864
# Seconds that what is known to be in the log may take to come by the subscription.
LATE: Final = 0.25
# How often the log is read for frames that do not fit, before one is dropped.
MAX_VAIN: Final = 3
# Seconds between two attempts to read while Redis is away.
PAUSE: Final = 0.25


class Reply(msgspec.Struct):
    """What the read script answers."""

    verdict: str
    log: str
    generation: int
    top: int
    lost: int
    tears: int
    begins: list[tuple[int, int]]
    # By number; of one socket each for `own`.
    entries: list[tuple[int, bytes]]
    own: list[list[tuple[int, bytes]]]
    short: list[str]
    # The number up to which all is here.
    end: int

    @classmethod
    def of(cls, reply: list[Any]) -> Reply:
        """Return what a reply says."""
        verdict, log, generation, top, lost, tears, begins, entries, own, short, end = reply
        return cls(
            verdict.decode(),
            (log or b"").decode(),
            generation,
            top,
            lost,
            tears,
            _pairs(begins),
            _pairs(entries),
            [_pairs(one) for one in own],
            [sid.decode() for sid in short],
            end,
        )

    def generation_of(self, number: int, first: int) -> int:
        """Return the generation of a number; `first` is the one that was asked for."""
        found = first
        for generation, begin in self.begins:
            if number > begin:
                found = generation
        return found


def _pairs(flat: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def forget(base: Base, namespace: str) -> None:
    """Let a log go soon if no node listens to it. Raises BrokerUnavailable if not started."""
    key = base.keys.base(namespace)
    how = "NUMSUB" if base.servers.verb == "PUBLISH" else "SHARDNUMSUB"
    base.run(namespace, FORGET, [f"{key}meta"], [how, key, 2 * base.bounds.age_ms])


class Feed:
    """A namespace that is attached to this node, or is being attached."""

    def __init__(
        self,
        base: Base,
        namespace: str,
        batches: dict[int, Batch],
        sids: Callable[[str], Collection[str]],
    ) -> None:
        self._base = base
        self.namespace: Final = namespace
        self._key = base.keys.base(namespace)
        self._channel = self._key.encode()
        # This node's own, by number.
        self._batches = batches
        # The sockets of this node in a namespace.
        self._sids = sids
        self._loop = asyncio.get_running_loop()
        self.attached: asyncio.Future[None] = self._loop.create_future()
        # Where it is: the last publication delivered. No log until attached.
        self.log: str = ""
        self.generation: int = 0
        self.number: int = 0
        # What a number's position is ahead of it: it grows when numbers fall back.
        self._ahead = 0
        self._tears = 0
        # The generations that led there, as far as they were seen.
        self._lineage: set[int] = set()
        self._copy = Copy(base, 0)
        # None unless something is read.
        self._reading: asyncio.Task[None] | None = None
        # Read once more, as more may have been missed meanwhile.
        self._again = False
        # How often something was read for a frame that still did not fit.
        self._vain = 0
        # What came by the subscription meanwhile.
        self._held: deque[Frame] = deque()
        self._held_size = 0
        # Batches of this node that are in the log and not delivered yet, by number, and since when.
        # Redis often replies before it publishes, so most are here for a moment.
        self._unsettled: dict[int, tuple[float, Batch]] = {}
        # None if there were none when it was last looked.
        self._settling: asyncio.TimerHandle | None = None
        # Who waits for a number.
        self._progress: list[asyncio.Future[None]] = []
        self._look: asyncio.TimerHandle | None = None
        self._closed = False

    # Life.

    def open(self) -> None:
        """Subscribe."""
        self._base.servers.add(self._channel, tag_of(self.namespace), self)

    def close(self, *, forget: bool) -> None:
        """Unsubscribe; let the log go if no node listens to it, and nobody can come back."""
        self._closed = True
        ended = self._forget if forget else None
        self._base.servers.remove(self._channel, tag_of(self.namespace), ended)
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        for timer in (self._look, self._settling):
            if timer is not None:
                timer.cancel()
        if not self.attached.done():
            self.attached.set_exception(BrokerUnavailable("the namespace was detached"))
            # Nobody may be waiting any more.
            self.attached.exception()
        for _, batch in self._unsettled.values():
            self._settle(batch)
        self._unsettled.clear()
        self._moved()

    def _forget(self) -> None:
        forget(self._base, self.namespace)

    # Places.

    def cursor(self, number: int | None = None) -> str:
        """Return a cursor of the current generation; of the last delivered without a number."""
        return f"{self.log}.{self.generation}-{self.number if number is None else number}"

    def position(self, number: int) -> int:
        """Return the position of a number: positions grow, whatever happens to the log."""
        return self._ahead + number

    def covers(self, log: str, generation: int, number: int) -> bool:
        """Return whether this place is behind what was delivered here, in one line."""
        return log == self.log and generation == self.generation and number <= self.number

    def recent(self, number: int, sid: str | None) -> list[tuple[int, Publication]] | None:
        """Return what was delivered after a number, as far as a client may get it, or None."""
        return self._copy.after(number, sid)

    async def reached(self, log: str, number: int, patience: float) -> bool:
        """Wait until a number was delivered; False if the log is another one by now.

        Raises BrokerUnavailable.
        """
        deadline = self._loop.time() + patience
        self.check(number)
        while self.log == log and self.number < number and not self._closed:
            wait = deadline - self._loop.time()
            if wait <= 0:
                raise BrokerUnavailable("what was published elsewhere does not arrive here")
            moved: asyncio.Future[None] = self._loop.create_future()
            self._progress.append(moved)
            await asyncio.wait([moved], timeout=wait)
        if self._closed:
            raise BrokerUnavailable("the namespace is no longer served here")
        return self.log == log

    def check(self, top: int) -> None:
        """Read on soon if the log is known to be ahead, and nothing comes."""
        if top > self.number and self._look is None and self._reading is None:
            self._look = self._loop.call_later(LATE, self._look_on, top)

    def _look_on(self, top: int) -> None:
        self._look = None
        if self.number < top:
            self.read()

    def look(self) -> None:
        """Compare this place with where the log is; keep the log for another day, the copy not."""
        self._copy.trim()
        if self.log and self._reading is None:
            compare = functools.partial(self._compare, self.number)
            self._base.run(self.namespace, TOP, *self._top(), compare)

    def _compare(self, number: int, reply: Any) -> None:
        if not isinstance(reply, list) or self._reading is not None or self._closed:
            return
        log, generation, top, tears = reply
        here = (self.log, self.generation, self._tears)
        # It may have fallen back behind what was delivered here before it was asked.
        if (log.decode(), generation, tears) != here or top < number:
            self.read()
        else:
            self.check(top)

    def _top(self) -> tuple[list[str | bytes], list[Arg]]:
        base = self._base
        return (
            [f"{self._key}meta", f"{self._key}log"],
            [self._key, base.skew, new_log_id(), base.bounds.age_ms],
        )

    async def top(self) -> list[Any]:
        """Ask where the log is; begin one if there is none. Raises BrokerUnavailable."""
        reply: list[Any] = await self._base.result(self.namespace, TOP, *self._top())
        return reply

    # The subscription.

    def confirmed(self) -> None:
        """Read on: before this, something may have been missed."""
        self.read()

    def refused(self, reason: str) -> None:
        """Note that it cannot be attached."""
        if not self.attached.done():
            self.attached.set_exception(BrokerUnavailable(reason))

    def heard(self, data: bytes) -> None:
        """Take a frame. Hot: once per frame."""
        try:
            frame = decode_frame(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            logger.error(
                "broker: dropped a message in %r that is not ours: %s", self.namespace, error
            )
            return
        if self._reading is not None:
            self._hold(frame)
        elif self.log:
            self._take(frame)

    def _hold(self, frame: Frame) -> None:
        self._held.append(frame)
        self._held_size += len(frame.entries)
        if self._held_size > MAX_HELD:
            self._held.clear()
            self._held_size = 0
            self._again = True

    def _take(self, frame: Frame) -> bool:
        """Deliver a frame that is next; return whether it was, or else read first."""
        if frame.log != self.log:
            return self._read_before(frame)
        if not frame.node:
            self._note_tears(frame.batch)
        if frame.generation < self.generation:
            # From a server that was replaced, and does not know it.
            return True
        if frame.generation > self.generation or frame.before > self.number:
            return self._read_before(frame)
        self._vain = 0
        if frame.node:
            try:
                self._deliver(frame)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                # Whoever sent it, its numbers count.
                logger.error("broker: lost a message in %r: %s", self.namespace, error)
                self.read()
        return True

    def _read_before(self, frame: Frame) -> bool:
        """Read before a frame is taken, unless that has been of no use."""
        self._vain += 1
        if self._vain > MAX_VAIN:
            # Somebody else's, or from a server that was replaced.
            self._vain = 0
            self._loop.call_later(LATE, self.look)
            return True
        self._hold(frame)
        self.read()
        return False

    def _deliver(self, frame: Frame) -> None:
        batch = self._batches.pop(frame.batch, None) if frame.node == self._base.node else None
        number = frame.before
        if batch is not None:
            self._unsettled.pop(batch.number, None)
            batch.log, batch.generation, batch.before = frame.log, frame.generation, number
            for place, item in enumerate(batch.items):
                if item.recorded:
                    number += 1
                    cursor = self._pass_on(number, item.publication, frame.private, place)
                    item.settle(cursor)
                else:
                    if number >= self.number:
                        self._receive(item.publication)
                    item.settle(None)
        else:
            namespace = self.namespace
            for place, entry in enumerate(decode_entries(frame.entries)):
                if entry.recorded:
                    number += 1
                    self._pass_on(number, entry.publication(namespace), frame.private, place)
                elif number >= self.number:
                    self._receive(entry.publication(namespace))
        if self._progress:
            self._moved()

    def _pass_on(
        self, number: int, publication: Publication, private: Collection[int], place: int = 0
    ) -> str:
        """Deliver a recorded publication, unless it was before; return its cursor."""
        cursor = f"{self.log}.{self.generation}-{number}"
        if number > self.number:
            self.number = number
            recorded = publication.at(cursor, self._ahead + number)
            if not private:
                self._copy.add(number, recorded, private=False)
            elif 2 * place + 1 not in private:
                self._copy.add(number, recorded, private=2 * place in private)
            self._receive(recorded)
        return cursor

    def _receive(self, publication: Publication) -> None:
        receiver = self._base.receiver
        if receiver is not None:
            receiver.deliver(publication)

    # Reading on.

    def read(self) -> None:
        """Read what may have been missed, then go on with the subscription."""
        if self._closed:
            return
        if self._reading is not None:
            self._again = True
            return
        self._reading = self._loop.create_task(self._read())

    async def _read(self) -> None:
        try:
            while True:
                self._again = False
                try:
                    if not self.log:
                        await self._begin()
                    while not await self._read_page():
                        pass
                except BrokerUnavailable as error:
                    if not self.attached.done():
                        self.attached.set_exception(error)
                        self.attached.exception()
                        return
                    await asyncio.sleep(PAUSE)
                    continue
                except Exception:
                    logger.exception("broker: reading %r failed", self.namespace)
                    await asyncio.sleep(4 * PAUSE)
                    continue
                if not self._again and self._go_on():
                    return
        finally:
            if self._reading is asyncio.current_task():
                self._reading = None

    def _go_on(self) -> bool:
        """Return to the subscription; False if more has to be read first."""
        self._reading = None
        held, self._held = self._held, deque()
        self._held_size = 0
        while held:
            if not self._take(held.popleft()):
                # The rest waits behind it.
                for frame in held:
                    self._hold(frame)
                return self._reading is not None
        self._settle_past(self._loop.time())
        return True

    async def _begin(self) -> None:
        log, generation, top, tears = await self.top()
        self._start(log.decode(), generation, top, tears)
        if not self.attached.done():
            self.attached.set_result(None)

    def _start(self, log: str, generation: int, number: int, tears: int) -> None:
        """Go on in another log, or at another place."""
        last = self._ahead + self.number
        self.log, self.generation, self.number, self._tears = log, generation, number, tears
        self._lineage.add(generation)
        # The next position is the next one.
        self._ahead = max(self._ahead, last - number) if last else 0
        self._copy = Copy(self._base, number)

    async def _read_page(self) -> bool:
        """Read a page and deliver it; return whether it was the last."""
        first = (self.log, self.generation, self.number)
        pages = []
        sids = list(self._sids(self.namespace))
        for start in range(0, max(len(sids), 1), SOCKETS):
            page = await self.ask(*first, PAGE, sids[start : start + SOCKETS])
            if page.verdict != "ok":
                await self._step_over(page)
                return False
            pages.append(page)
        self._note_tears(pages[-1].tears)
        end = min(page.end for page in pages)
        # Which are not in the log of all.
        own = {number: data for page in pages for run in page.own for number, data in run}
        entries = dict(pages[0].entries) | own
        for page in pages:
            for sid in page.short:
                self._tell_lost(sid)
        for number in sorted(entries):
            if number > end:
                break
            self.generation = pages[0].generation_of(number, first[1])
            try:
                entry = decode_entry(entries[number])
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                logger.error("broker: lost number %d in %r: %s", number, self.namespace, error)
                self._tell_lost(None)
                continue
            private = (0,) if number in own else ()
            self._pass_on(number, entry.publication(self.namespace), private)
        if end > first[2]:
            self.number = max(self.number, end)
            # What other nodes' sockets alone were sent was not among it.
            self._copy.whole_from = self.number
        if pages[0].begins:
            self.generation = pages[0].generation_of(self.number, first[1])
        last = all(page.end == page.top for page in pages)
        if last:
            self.generation = pages[0].generation
        self._lineage.add(self.generation)
        self._moved()
        return last

    async def ask(
        self, log: str, generation: int, number: int, most: int, sids: Collection[str]
    ) -> Reply:
        """Read after a place. Raises BrokerUnavailable."""
        base = self._base
        args: list[Arg] = [
            self._key,
            base.skew,
            base.bounds.age_ms,
            log,
            generation,
            number,
            most,
            *sids,
        ]
        keys = [f"{self._key}meta", f"{self._key}log"]
        for sid in sids:
            keys += [f"{self._key}sid:{sid}", f"{self._key}own:{sid}"]
        return Reply.of(await base.result(self.namespace, READ, keys, args))

    async def _step_over(self, page: Reply) -> None:
        """Go on behind what is lost, and tell of it."""
        if page.verdict == "expired":
            logger.warning("broker: %r: this node was away for too long", self.namespace)
            self._start(
                self.log, page.generation_of(page.lost, self.generation), page.lost, self._tears
            )
            self._tell_lost(None)
        elif page.verdict == "torn":
            if not page.begins:
                # Nothing was appended since.
                await self._tear()
                return
            generation, begin = page.begins[0]
            if self.number > begin:
                await self._tear()
                logger.warning(
                    "broker: %r: Redis has lost what followed number %d", self.namespace, begin
                )
                self._start(self.log, generation, begin, self._tears)
            else:
                self.generation = generation
            self._note_tears(page.tears)
        elif not page.log:
            # There is no log: begin one, and read it from its beginning, as others may have
            # published in it by then.
            await self.top()
        else:
            logger.warning("broker: %r: Redis has lost the log", self.namespace)
            # Or a generation that this node has seen is lost, even that it began.
            number = self._fork(page) if page.log == self.log else page.lost
            self._start(page.log, page.generation, number, page.tears)
            self._tell_lost(None)

    def _fork(self, page: Reply) -> int:
        """Return the last number that this node has seen and that is still in the log."""
        number = page.top
        for generation, begin in reversed(page.begins):
            if generation in self._lineage:
                break
            number = begin
        return min(number, self.number)

    async def _tear(self) -> None:
        """Tell all nodes how far a lost generation had gone."""
        base = self._base
        args: list[Arg] = [self._key, base.skew, base.bounds.age_ms, self.log, self.generation]
        args += [self.number, base.servers.verb, self._key]
        keys = [f"{self._key}meta", f"{self._key}log"]
        await base.result(self.namespace, TEAR, keys, args)

    def _note_tears(self, tears: int) -> None:
        if tears > self._tears:
            self._tears = tears
            self._tell_lost(None)

    def _tell_lost(self, sid: str | None) -> None:
        receiver = self._base.receiver
        if receiver is not None:
            receiver.lost(self.namespace, sid)

    # This node's own.

    def appended(self, batch: Batch) -> None:
        """Note that a batch of this node is in the log: it will be heard, or read."""
        if batch.number not in self._batches:
            return
        # Numbers of another log, or of what this node still has to find out, say nothing.
        here = batch.log == self.log and batch.generation <= self.generation
        if not self.log or (here and batch.before < batch.last <= self.number):
            self._settle(batch)
        else:
            self._unsettled[batch.number] = (self._loop.time(), batch)
            if self._settling is None:
                self._settling = self._loop.call_later(4 * LATE, self._settle_late)

    def _settle_late(self) -> None:
        """Look at what is not delivered for long: it may have been read, or never come."""
        self._settling = None
        self._settle_past(self._loop.time() - 4 * LATE)
        if self._unsettled:
            self._settling = self._loop.call_later(4 * LATE, self._settle_late)

    def _settle_past(self, until: float) -> None:
        """End the futures of what was read, or of what is behind it, of those until a time."""
        for since, batch in list(self._unsettled.values()):
            if since <= until and self._is_past(batch):
                del self._unsettled[batch.number]
                self._settle(batch)

    def _is_past(self, batch: Batch) -> bool:
        return (
            batch.number not in self._batches or batch.log != self.log or batch.last <= self.number
        )

    def _settle(self, batch: Batch) -> None:
        self._batches.pop(batch.number, None)
        batch.settle()

    def _moved(self) -> None:
        waiting, self._progress = self._progress, []
        for moved in waiting:
            if not moved.done():
                moved.set_result(None)
