"""Commands to a server, in order, over a connection that comes back by itself."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from crossband.broker.redis import scripts
from crossband.broker.redis.address import Address, Place
from crossband.broker.redis.dialing import FINAL, Unfit, connect
from crossband.broker.redis.link import Arg, Link, pack
from crossband.broker.redis.replies import Remedy, ServerError, advice, remedy
from crossband.broker.redis.scripts import Script
from crossband.errors import BrokerUnavailable

logger: Final = logging.getLogger("crossband")

# Seconds after which a command that was not replied to fails.
PATIENCE: Final = 5.0
# Seconds without a reply after which a connection counts as dead.
REPLY_TIME: Final = 3.0
# Seconds between two looks at what waits.
LOOK: Final = 0.25
# Seconds before a command is sent again that the server could not carry out now.
WAIT: Final = 0.1
# Seconds between two attempts to connect: the first, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0

# Seconds for which a refusal counts as a problem, and is not logged again.
REFUSED: Final = 10.0

# The oldest version whose streams can be trimmed by MINID.
OLDEST: Final = (6, 2)
# The oldest version whose clusters have sharded channels.
OLDEST_CLUSTER: Final = (7, 0)

_LOADS: Final = [
    (script, pack("SCRIPT", "LOAD", script.source))
    for script in vars(scripts).values()
    if isinstance(script, Script)
]

_ASKING: Final = pack("ASKING")

# Takes a reply, or the error that came instead of it.
Done = Callable[[Any], None]


class Call:
    """A command, until it is done."""

    __slots__ = ("again", "args", "done", "key", "packed", "refusal", "script", "since")

    def __init__(
        self,
        packed: bytes,
        done: Done | None,
        since: float,
        *,
        again: bool,
        key: Arg = b"",
        script: Script | None = None,
        args: Sequence[Arg] = (),
    ) -> None:
        self.packed: bytes = packed
        # None once it is done, or if nobody wants the reply.
        self.done = done
        # When it was queued, in the loop's time.
        self.since: Final = since
        # It may be sent again if the connection was lost before its reply came.
        self.again: Final = again
        # To send the script itself.
        self.script: Final = script
        self.args: Final = args
        # One of its keys, or its channel: all of a command are in one slot.
        self.key: Final = key
        # Why the server could not carry it out when it was last asked.
        self.refusal: str = ""

    def end(self, outcome: Any) -> None:
        """Hand over the reply, or an exception, once."""
        done, self.done = self.done, None
        if done is not None:
            done(outcome)


class Commands:
    """The commands of this node to one server."""

    def __init__(
        self,
        address: Address,
        place: Place | None,
        name: str,
        connected: Callable[[], None],
        moved: Callable[[Call, ServerError], None] | None = None,
    ) -> None:
        self._address = address
        # None: it has to be looked for.
        self._place = place
        self._name = name
        # Called after each login, when what waited is about to be sent.
        self._connected = connected
        # In a cluster: takes what is another server's.
        self._moved = moved
        self._link: Link | None = None
        self._loop = asyncio.get_running_loop()
        # Not sent yet; and sent, in order.
        self._waiting: deque[Call] = deque()
        self._sent: deque[Call] = deque()
        # Will be sent again after a pause.
        self._later: list[Call] = []
        self._pause: asyncio.TimerHandle | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._down: asyncio.Event = asyncio.Event()
        # Why it is not connected; None if it is.
        self._trouble: str | None = "not connected yet"
        # When the connection was lost, in the loop's time.
        self.since: float = 0.0
        # What the server last refused to do, and when, in the loop's time.
        self._refusal = ""
        self._refused_at = 0.0
        # Where it is connected to.
        self.at: Place | None = None
        # Connections so far.
        self.connections: int = 0

    @property
    def problem(self) -> str | None:
        """Why it is not connected, or what the server refuses to do; None if all is well."""
        if (
            self._trouble is None
            and self._loop.time() - self._refused_at < REFUSED
            and self._refusal
        ):
            return self._refusal
        return self._trouble

    @property
    def connected(self) -> bool:
        """Whether commands reach the server."""
        return self._trouble is None

    # Life.

    async def start(self, patience: float) -> None:
        """Connect. Raises BrokerUnavailable, at once if trying again cannot help."""
        deadline = self._loop.time() + patience
        pause = FIRST_PAUSE
        while True:
            try:
                await self._connect()
                break
            except Unfit as error:
                self._trouble = str(error)
                if error.final or self._loop.time() + pause > deadline:
                    raise BrokerUnavailable(str(error)) from None
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        self._keeping = self._loop.create_task(self._keep())
        self._looking = self._loop.call_later(LOOK, self._look)

    async def stop(self) -> None:
        """Disconnect; what waits fails."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
            self._keeping = None
        for timer in (self._looking, self._pause):
            if timer is not None:
                timer.cancel()
        self._looking = self._pause = None
        link, self._link = self._link, None
        if link is not None:
            link.abort()
        self._trouble = "the broker is stopped"
        left = [*self._sent, *self._later, *self._waiting]
        self._sent.clear()
        self._later.clear()
        self._waiting.clear()
        for call in left:
            call.end(BrokerUnavailable("the broker is stopped"))

    async def _keep(self) -> None:
        """Connect again whenever the connection is lost."""
        while True:
            await self._down.wait()
            pause = FIRST_PAUSE
            while True:
                # Not all nodes at the same moment.
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
                try:
                    await self._connect()
                    break
                except Unfit as error:
                    if str(error) != self._trouble:
                        logger.warning("broker: %s", error)
                    self._trouble = str(error)
                except Exception:
                    logger.exception("broker: connecting failed")
                pause = min(2 * pause, LONGEST_PAUSE)
            logger.warning("broker: connected to Redis at %s again", self.at)

    async def _connect(self) -> None:
        ended: list[str] = []

        def lost(reason: str) -> None:
            ended.append(reason)
            if link is not None and self._link is link:
                self._lost(reason)

        link: Link | None = None
        link, place = await connect(self._address, self._place, _unasked, lost, self._name)
        try:
            await _check(link, place, OLDEST if self._moved is None else OLDEST_CLUSTER)
        except (OSError, ServerError) as error:
            link.abort()
            if isinstance(error, ServerError):
                raise Unfit(f"{place}: {advice(error)}", final=error.code in FINAL) from None
            raise Unfit(f"{place}: {error}") from None
        except BaseException:
            link.abort()
            raise
        if ended:
            raise Unfit(f"{place}: the connection was lost at once: {ended[0]}")
        self._down.clear()
        self._link, self.at, self._trouble = link, place, None
        self.connections += 1
        for _, load in _LOADS:
            link.call(load, _ignore)
        self._connected()
        # What was refused came before what waits.
        later, self._later = self._later, []
        waiting, self._waiting = self._waiting, deque()
        for call in (*later, *waiting):
            self._send(call)

    def _lost(self, reason: str) -> None:
        """Keep what may be sent again; fail the rest."""
        self._link = None
        self.since = self._loop.time()
        self._trouble = f"the connection to Redis at {self.at} was lost: {reason}"
        logger.warning("broker: %s", self._trouble)
        sent, self._sent = self._sent, deque()
        self._waiting.extendleft(reversed([call for call in sent if call.again]))
        for call in sent:
            if not call.again:
                call.end(BrokerUnavailable(self._trouble))
        self._down.set()

    def reconnect(self) -> None:
        """Look for the server anew: this one is not the right one any more."""
        if self._link is not None:
            self._link.abort(self._trouble or "another server is looked for")

    # Commands.

    def run(
        self,
        script: Script,
        keys: Sequence[str | bytes],
        args: Sequence[Arg],
        done: Done | None = None,
        *,
        again: bool = True,
    ) -> None:
        """Run a script. Its reply goes to `done`, or an exception."""
        rest = (len(keys), *keys, *args)
        packed = pack("EVALSHA", script.sha, *rest)
        self.queue(
            Call(
                packed,
                done,
                self._loop.time(),
                again=again,
                key=keys[0],
                script=script,
                args=rest,
            )
        )

    def call(self, *args: Arg, done: Done | None = None, again: bool = True) -> None:
        """Send a command. Its reply goes to `done`, or an exception."""
        key = args[1] if len(args) > 1 else b""
        self.queue(Call(pack(*args), done, self._loop.time(), again=again, key=key))

    async def ask(self, *args: Arg) -> Any:
        """Send a command, and return its reply. Raises BrokerUnavailable."""
        return await wanted(lambda done: self.call(*args, done=done))

    async def result(self, script: Script, keys: Sequence[str | bytes], args: Sequence[Arg]) -> Any:
        """Run a script, and return its reply. Raises BrokerUnavailable."""
        return await wanted(lambda done: self.run(script, keys, args, done))

    def queue(self, call: Call, *, asking: bool = False) -> None:
        """Send a command, or queue it; `asking`, for a slot that is on its way here."""
        if asking and self._link is not None:
            self._link.call(_ASKING, _ignore)
        if self._link is not None and self._pause is None:
            self._send(call)
        elif self._keeping is None and self._link is None:
            call.end(BrokerUnavailable(self._trouble or "the broker is stopped"))
        else:
            self._waiting.append(call)

    def _send(self, call: Call) -> None:
        if self._link is None:
            self._waiting.append(call)
            return
        self._sent.append(call)
        self._link.call(call.packed, self._take)

    def _take(self, reply: Any) -> None:
        """Hand over a reply: those of a connection come in the order of its commands."""
        call = self._sent.popleft()
        if isinstance(reply, ServerError):
            self._failed(call, reply)
        else:
            call.end(reply)

    def _failed(self, call: Call, error: ServerError) -> None:
        what = remedy(error)
        if what is Remedy.LOAD and call.script is not None:
            call.packed = pack("EVAL", call.script.source, *call.args)
            self._send(call)
        elif self._moved is not None and error.code in ("MOVED", "ASK"):
            self._moved(call, error)
        elif what is Remedy.MOVE:
            self._retry(call, error)
            self._trouble = f"{self.at}: {advice(error)}"
            self.reconnect()
        elif what is Remedy.WAIT:
            self._retry(call, error)
        else:
            text = f"{self.at}: {advice(error)}"
            self._note_refusal(text)
            call.end(BrokerUnavailable(text))

    def _note_refusal(self, text: str) -> None:
        """Log what the server refuses, and count it as a problem for some time."""
        now = self._loop.time()
        # In brackets, there is the script and its line.
        same = text.partition(" (")[0] == self._refusal.partition(" (")[0]
        if not same or now - self._refused_at > REFUSED:
            logger.error("broker: %s", text)
            self._refused_at = now
        self._refusal = text

    def _retry(self, call: Call, error: ServerError) -> None:
        """Send a command again after a pause: the server has not carried it out."""
        call.refusal = f"{self.at}: {advice(error)}"
        if call.since + PATIENCE <= self._loop.time():
            self._give_up(call)
            return
        self._later.append(call)
        if self._pause is None:
            self._pause = self._loop.call_later(WAIT, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        later, self._later = self._later, []
        self._waiting.extendleft(reversed(later))
        if self._link is not None:
            waiting, self._waiting = self._waiting, deque()
            for call in waiting:
                self._send(call)

    def take_all(self) -> list[Call]:
        """Disconnect, and return all that waits, for another server.

        What may not be sent twice fails.
        """
        link, self._link = self._link, None
        if link is not None:
            link.abort()
        taken = [*self._later, *(call for call in self._sent if call.again), *self._waiting]
        for call in self._sent:
            if not call.again:
                call.end(BrokerUnavailable("the cluster has changed"))
        self._sent.clear()
        self._later.clear()
        self._waiting.clear()
        return taken

    def _look(self) -> None:
        """Give up what waits for too long, and a connection that is dead."""
        now = self._loop.time()
        self._looking = self._loop.call_later(LOOK, self._look)
        if self._sent and self._link is not None:
            silent = now - max(self._link.heard_at, self._sent[0].since)
            if silent > REPLY_TIME:
                self._link.abort(f"no reply for {REPLY_TIME:g} s")
        for calls in (self._sent, self._later, self._waiting):
            for call in calls:
                if call.since + PATIENCE > now:
                    break
                self._give_up(call)
        self._later = [call for call in self._later if call.since + PATIENCE > now]
        while self._waiting and self._waiting[0].since + PATIENCE <= now:
            self._waiting.popleft()

    def _give_up(self, call: Call) -> None:
        """Fail a command that has waited for too long."""
        if self._trouble is None and call.refusal:
            self._note_refusal(call.refusal)
        if call.done is not None:
            problem = self._trouble or call.refusal or f"no answer from Redis at {self.at}"
            call.end(BrokerUnavailable(problem))


async def wanted(queue: Callable[[Done], None]) -> Any:
    """Return the reply of a command that is queued with a callback. Raises BrokerUnavailable."""
    reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(outcome: Any) -> None:
        if reply.done():
            return
        if isinstance(outcome, Exception):
            reply.set_exception(outcome)
        else:
            reply.set_result(outcome)

    queue(done)
    return await reply


async def _check(link: Link, place: Place, oldest: tuple[int, int]) -> None:
    """Raise Unfit for a server that is too old, or a replica."""
    try:
        text: bytes = await link.ask("INFO")
    except ServerError as error:
        if error.code == "NOPERM":
            # It will say itself what it does not permit.
            return
        raise
    info = dict(
        line.split(":", 1) for line in text.decode("utf-8", "replace").splitlines() if ":" in line
    )
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("redis_version", "")
    numbers = [part for part in version.split(".") if part.isdigit()]
    if len(numbers) > 1 and (int(numbers[0]), int(numbers[1])) < oldest:
        needed = "{}.{}".format(*oldest)
        raise Unfit(
            f"{place}: {name} {version} is too old: Crossband needs Redis {needed} or later here, "
            "or Valkey",
            final=True,
        )
    if info.get("role") == "slave":
        raise Unfit(f"{place}: {advice(ServerError('READONLY it is a replica'))}")
    if info.get("loading") == "1":
        raise Unfit(f"{place}: Redis is still loading its data")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and info.get("maxmemory", "0") != "0":
        logger.warning(
            "broker: %s throws keys away when it is full (maxmemory-policy %s), and history and "
            "sessions with them: set it to noeviction",
            place,
            policy,
        )


def _unasked(_: Any) -> None:
    pass


_ignore: Final = _unasked
