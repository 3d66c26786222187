"""The publisher for code that blocks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from redis.exceptions import NoScriptError

from crossband.broker import Publication
from crossband.broker.redis.commands import FIRST_PAUSE, LONGEST_PAUSE, PATIENCE
from crossband.errors import BrokerUnavailable
from crossband.hub.messages import Disconnect, Join, Leave, Message
from crossband.names import check_name, check_user
from crossband.publisher.chosen import Choosing, Chosen, check_namespace
from crossband.publisher.servers import FAILURES, Site, check_timeout, close_blocking
from crossband.publisher.steps import Step, Steps, cursor_of

T = TypeVar("T")


class Recipients(Choosing["Recipients"]):
    """A choice of recipients within one namespace; each step returns a new one."""

    __slots__ = ("_publisher",)

    def __init__(self, publisher: Publisher, chosen: Chosen) -> None:
        super().__init__(chosen)
        self._publisher = publisher

    def _with(self, chosen: Chosen) -> Recipients:
        return Recipients(self._publisher, chosen)

    def emit(self, event: str, *args: Any) -> str | None:
        """Publish an event to the chosen clients; return its cursor (None if volatile).

        It is in its namespace's order when this returns. What `policy` says on the hub does not
        count here: it is recorded unless volatile. Raises EncodeError, and BrokerUnavailable
        after `timeout` seconds: it may have been published all the same.
        """
        publication = self._chosen.publication(event, args)
        return self._publisher._append(publication, recorded=self._chosen.recorded)

    def server_emit(self, event: str, *args: Any) -> None:
        """Send an event to the handlers that all servers have here (`on_server`).

        It reaches each server that is alive, once or not at all. Raises EncodeError, ValueError if
        rooms are chosen, and BrokerUnavailable.
        """
        self._publisher._tell(self._chosen.server_event(event, args), again=False)

    def sockets_join(self, *rooms: str) -> None:
        """Make the chosen clients join rooms, soon. Raises BrokerUnavailable."""
        names = tuple(check_name(room, "a room name") for room in rooms)
        message = Join(self._chosen.choice, names)
        self._publisher._tell(message)

    def sockets_leave(self, *rooms: str) -> None:
        """Make the chosen clients leave rooms, soon. Raises BrokerUnavailable."""
        message = Leave(self._chosen.choice, rooms)
        self._publisher._tell(message)

    def disconnect_sockets(self, close: bool = False) -> None:
        """Disconnect the chosen clients, soon; with `close`, their connections.

        A node that is out of reach at the moment does not hear of it: to keep a user out, use
        `revoke`. Raises BrokerUnavailable.
        """
        message = Disconnect(self._chosen.choice, close)
        self._publisher._tell(message)


class Publisher(Recipients):
    """Publishes without a hub, from code that blocks; acts as the namespace `/`.

    `url` is the hub's broker: `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or
    `redis+cluster://`. Nothing is connected before the first call. Safe in threads and after a
    fork, so one for the whole program is right: in Celery's prefork pool, too. A call that is
    retried publishes nothing twice. Each takes `timeout` seconds at most. Raises ValueError for a
    URL that cannot be read.
    """

    __slots__ = ("_client", "_lock", "_pid", "_site", "_steps", "_timeout")

    def __init__(self, url: str, *, timeout: float = PATIENCE) -> None:
        self._timeout = check_timeout(timeout)
        self._site = Site(url, timeout)
        super().__init__(self, Chosen())
        self._begin()

    def _begin(self) -> None:
        # The process that these belong to: a fork has connections and a sender of its own.
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._client: Any = None
        self._steps = Steps(self._site.address.prefix, self._site.verb, self._timeout)

    def __repr__(self) -> str:
        return f"<Publisher to {self._site.address}>"

    def of(self, namespace: str) -> Recipients:
        """Return another namespace, of this name."""
        return Recipients(self, Chosen(check_namespace(namespace)))

    def revoke(self, user: str) -> None:
        """End a user's connections on every node, and refuse older tokens. As `Hub.revoke`.

        A node that is out of reach learns of it when it is back. Raises BrokerUnavailable, and
        TypeError for a user that is not a string.
        """
        check_user(user)
        steps = self._ready()
        store, tell = steps.revoke(user, time.time())
        self._do(store)
        self._do(tell)

    def close(self) -> None:
        """Close the connections. A later call opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None and self._pid == os.getpid():
            close_blocking(client)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Carrying out.

    def _append(self, publication: Publication, *, recorded: bool) -> str | None:
        with self._ready().append(publication, recorded=recorded) as step:
            return cursor_of(self._do(step), recorded=recorded)

    def _tell(self, message: Message, *, again: bool = True) -> None:
        steps = self._ready()
        self._do(steps.tell(message, again=again))

    def _do(self, step: Step) -> Any:
        return self._try(lambda client: _run(client, step), again=step.again)

    def _ready(self) -> Steps:
        """Return what makes the steps, once it knows what the hub says of itself."""
        if self._pid != os.getpid():
            self._begin()
        steps = self._steps
        if steps.due:
            steps.looked(self._try(lambda client: client.execute_command(*steps.look)))
        return steps

    def _connect(self) -> Any:
        if self._client is None:
            with self._lock:
                if self._client is None:
                    self._client = self._site.blocking()
        return self._client

    def _try(self, act: Callable[[Any], T], *, again: bool = True) -> T:
        """Do it, several times if that may help. Raises BrokerUnavailable."""
        deadline = time.monotonic() + self._timeout
        pause = FIRST_PAUSE
        while True:
            try:
                return act(self._connect())
            except FAILURES as error:
                failure = self._site.failure(error)
                hopeless = not failure.passing or not (again or failure.refused)
                if hopeless or time.monotonic() + pause > deadline:
                    raise BrokerUnavailable(failure.text) from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def _run(client: Any, step: Step) -> Any:
    rest = (len(step.keys), *step.keys, *step.args)
    try:
        return client.execute_command("EVALSHA", step.script.sha, *rest)
    except NoScriptError:
        return client.execute_command("EVAL", step.script.source, *rest)
