"""The publisher for asyncio."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar
from weakref import WeakKeyDictionary

from redis.exceptions import NoScriptError

from crossband.broker import Publication
from crossband.broker.redis.commands import FIRST_PAUSE, LONGEST_PAUSE, PATIENCE
from crossband.errors import BrokerUnavailable
from crossband.hub.messages import Disconnect, Join, Leave, Message
from crossband.names import check_name, check_user
from crossband.publisher.chosen import Choosing, Chosen, check_namespace
from crossband.publisher.servers import FAILURES, Site, check_timeout, close_awaited
from crossband.publisher.steps import Step, Steps, cursor_of

T = TypeVar("T")


class AsyncRecipients(Choosing["AsyncRecipients"]):
    """A choice of recipients within one namespace; each step returns a new one."""

    __slots__ = ("_publisher",)

    def __init__(self, publisher: AsyncPublisher, chosen: Chosen) -> None:
        super().__init__(chosen)
        self._publisher = publisher

    def _with(self, chosen: Chosen) -> AsyncRecipients:
        return AsyncRecipients(self._publisher, chosen)

    async def emit(self, event: str, *args: Any) -> str | None:
        """Publish an event to the chosen clients; return its cursor (None if volatile).

        It is in its namespace's order when this returns. What `policy` says on the hub does not
        count here: it is recorded unless volatile. Raises EncodeError, and BrokerUnavailable
        after `timeout` seconds: it may have been published all the same.
        """
        publication = self._chosen.publication(event, args)
        return await self._publisher._append(publication, recorded=self._chosen.recorded)

    async def server_emit(self, event: str, *args: Any) -> None:
        """Send an event to the handlers that all servers have here (`on_server`).

        It reaches each server that is alive, once or not at all. Raises EncodeError, ValueError if
        rooms are chosen, and BrokerUnavailable.
        """
        await self._publisher._tell(self._chosen.server_event(event, args), again=False)

    async def sockets_join(self, *rooms: str) -> None:
        """Make the chosen clients join rooms, soon. Raises BrokerUnavailable."""
        names = tuple(check_name(room, "a room name") for room in rooms)
        message = Join(self._chosen.choice, names)
        await self._publisher._tell(message)

    async def sockets_leave(self, *rooms: str) -> None:
        """Make the chosen clients leave rooms, soon. Raises BrokerUnavailable."""
        message = Leave(self._chosen.choice, rooms)
        await self._publisher._tell(message)

    async def disconnect_sockets(self, close: bool = False) -> None:
        """Disconnect the chosen clients, soon; with `close`, their connections.

        A node that is out of reach at the moment does not hear of it: to keep a user out, use
        `revoke`. Raises BrokerUnavailable.
        """
        message = Disconnect(self._chosen.choice, close)
        await self._publisher._tell(message)


class AsyncPublisher(AsyncRecipients):
    """Publishes without a hub, for asyncio; acts as the namespace `/`. As `Publisher`.

    Has connections of its own in each event loop and each process. Calls that run at the same
    time have no order among themselves: await one before the next where that matters.
    """

    __slots__ = ("_clients", "_pid", "_site", "_steps", "_timeout")

    def __init__(self, url: str, *, timeout: float = PATIENCE) -> None:
        self._timeout = check_timeout(timeout)
        self._site = Site(url, timeout)
        super().__init__(self, Chosen())
        self._begin()

    def _begin(self) -> None:
        # The process that these belong to: a fork has connections and a sender of its own.
        self._pid = os.getpid()
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()
        self._steps = Steps(self._site.address.prefix, self._site.verb, self._timeout)

    def __repr__(self) -> str:
        return f"<AsyncPublisher to {self._site.address}>"

    def of(self, namespace: str) -> AsyncRecipients:
        """Return another namespace, of this name."""
        return AsyncRecipients(self, Chosen(check_namespace(namespace)))

    async def revoke(self, user: str) -> None:
        """End a user's connections on every node, and refuse older tokens. As `Hub.revoke`.

        A node that is out of reach learns of it when it is back. Raises BrokerUnavailable, and
        TypeError for a user that is not a string.
        """
        check_user(user)
        steps = await self._ready()
        store, tell = steps.revoke(user, time.time())
        await self._do(store)
        await self._do(tell)

    async def close(self) -> None:
        """Close the connections of this event loop. A later call opens new ones."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None and self._pid == os.getpid():
            await close_awaited(client)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # Carrying out.

    async def _append(self, publication: Publication, *, recorded: bool) -> str | None:
        with (await self._ready()).append(publication, recorded=recorded) as step:
            return cursor_of(await self._do(step), recorded=recorded)

    async def _tell(self, message: Message, *, again: bool = True) -> None:
        steps = await self._ready()
        await self._do(steps.tell(message, again=again))

    async def _do(self, step: Step) -> Any:
        return await self._try(lambda client: _run(client, step), again=step.again)

    async def _ready(self) -> Steps:
        """Return what makes the steps, once it knows what the hub says of itself."""
        if self._pid != os.getpid():
            self._begin()
        steps = self._steps
        if steps.due:
            steps.looked(await self._try(lambda client: client.execute_command(*steps.look)))
        return steps

    def _connect(self) -> Any:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = self._site.awaited()
        return client

    async def _try(self, act: Callable[[Any], Awaitable[T]], *, again: bool = True) -> T:
        """Do it, several times if that may help. Raises BrokerUnavailable."""
        deadline = time.monotonic() + self._timeout
        pause = FIRST_PAUSE
        while True:
            try:
                return await act(self._connect())
            except FAILURES as error:
                failure = self._site.failure(error)
                hopeless = not failure.passing or not (again or failure.refused)
                if hopeless or time.monotonic() + pause > deadline:
                    raise BrokerUnavailable(failure.text) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


async def _run(client: Any, step: Step) -> Any:
    rest = (len(step.keys), *step.keys, *step.args)
    try:
        return await client.execute_command("EVALSHA", step.script.sha, *rest)
    except NoScriptError:
        return await client.execute_command("EVAL", step.script.source, *rest)
