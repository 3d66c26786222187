"""The session store in Redis: each operation one script, queued in order."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection
from typing import Any, Final

import msgspec

from crossband.broker.redis.base import Base
from crossband.broker.redis.link import Arg
from crossband.broker.redis.scripts import DROP, FIND, KEEP, REVOKE, TAKE, TOUCH
from crossband.broker.sessions import (
    LEASE,
    MAX_REVOKED,
    Revocation,
    Session,
    SessionStore,
    pack,
    unpack,
)
from crossband.names import is_socket_id

logger: Final = logging.getLogger("crossband")

# Sessions whose life is prolonged in one step.
TOUCHES: Final = 200
Place = tuple[str, str]


class RedisSessions(SessionStore):
    """One node's end of the sessions of all nodes."""

    def __init__(self, base: Base) -> None:
        self._base = base
        # This node's sessions, and when their life was last prolonged; the longest ago first.
        self._mine: dict[Place, tuple[float, Session]] = {}
        # Their socket ids, by namespace.
        self._sids: dict[str, dict[str, str]] = {}
        self._calls = itertools.count(1)

    def sids(self, namespace: str) -> Collection[str]:
        """Return the socket ids of this node's sessions in a namespace."""
        return self._sids.get(namespace, {}).values()

    def clear(self) -> None:
        """Forget this node's sessions."""
        self._mine.clear()
        self._sids.clear()

    # Sessions.

    def save(self, session: Session) -> None:
        self._note(session, session.owner == self._base.node)
        self._keep(session, LEASE + self._base.bounds.age)

    def release(self, session: Session) -> None:
        self._note(session, False)
        self._keep(session, self._base.bounds.age)

    def drop(self, session: Session) -> None:
        self._note(session, False)
        key = self._key(session.namespace, session.key)
        args = [*self._start(session.namespace, session.key), session.owner, session.take]
        self._base.run(session.namespace, DROP, [key], args)

    async def find(self, namespace: str, key: str) -> Session | None:
        args = self._start(namespace, key)
        reply = await self._base.result(namespace, FIND, [self._key(namespace, key)], args)
        session = _session(reply)
        if session is not None and await self._is_revoked(session, reply[4]):
            self._drop_revoked(session)
            return None
        return session

    async def take(self, session: Session, owner: str) -> Session | None:
        namespace, key = session.namespace, session.key
        if await self._is_revoked(session, None):
            # Whether it is older than that is known once it is found.
            found = await self.find(namespace, key)
            if found is None:
                return None
        args = [
            *self._start(namespace, key),
            session.sid,
            session.attempt,
            owner,
            f"{self._base.node}:{next(self._calls)}",
            self._life(LEASE + self._base.bounds.age),
        ]
        reply = await self._base.result(namespace, TAKE, [self._key(namespace, key)], args)
        taken = _session(reply)
        if taken is not None:
            self._note(taken, owner == self._base.node)
        return taken

    def renew(self, owner: str) -> None:
        if owner != self._base.node:
            return
        now = self._base.now()
        due: dict[str, list[Session]] = {}
        for place, (touched, session) in list(self._mine.items()):
            if touched + LEASE / 2 > now:
                break
            # Moved to the end.
            del self._mine[place]
            self._mine[place] = (now, session)
            due.setdefault(place[0], []).append(session)
        for namespace, sessions in due.items():
            for start in range(0, len(sessions), TOUCHES):
                self._touch(namespace, sessions[start : start + TOUCHES])

    def _touch(self, namespace: str, sessions: list[Session]) -> None:
        life = self._life(LEASE + self._base.bounds.age)
        base = self._base.keys.base(namespace)
        args: list[Arg] = [base, self._base.skew, self._base.node, life]
        for session in sessions:
            args += [_bytes(session.key), session.take]

        def done(reply: Any) -> None:
            if isinstance(reply, list):
                for key, taken in reply:
                    self._gone(namespace, key.decode("utf-8", "surrogatepass"), taken)

        self._base.run(
            namespace,
            TOUCH,
            [self._key(namespace, session.key) for session in sessions],
            args,
            done,
        )

    def _gone(self, namespace: str, key: str, taken: int) -> None:
        mine = self._mine.get((namespace, key))
        if mine is None:
            return
        if taken:
            self._tell_taken(mine[1])
        else:
            # Redis has lost it.
            self.save(mine[1])

    def _tell_taken(self, session: Session) -> None:
        receiver = self._base.receiver
        if receiver is not None:
            receiver.taken(session.namespace, session.key, session.take)

    def _note(self, session: Session, mine: bool) -> None:
        place = (session.namespace, session.key)
        if mine:
            since, known = self._mine.get(place, (self._base.now(), session))
            if session.take < known.take:
                # An earlier connection's.
                return
            self._mine[place] = (since, session)
            self._sids.setdefault(session.namespace, {})[session.key] = session.sid
        elif self._mine.pop(place, None) is not None:
            sids = self._sids[session.namespace]
            del sids[session.key]
            if not sids:
                del self._sids[session.namespace]

    def _keep(self, session: Session, life: float) -> None:
        visits = " ".join(sorted(room for room in session.rooms if is_socket_id(room)))
        base = self._base.keys.base(session.namespace)
        args: list[Arg] = [
            *self._start(session.namespace, session.key),
            pack(session),
            session.owner,
            session.take,
            session.sid,
            _bytes(session.user or ""),
            visits,
            self._life(life),
        ]
        key = self._key(session.namespace, session.key)
        connected = life > self._base.bounds.age

        def done(reply: Any) -> None:
            if reply == -1 and connected:
                self._tell_taken(session)

        self._base.run(session.namespace, KEEP, [key, f"{base}sid:{session.sid}"], args, done)

    # Revocations.

    async def revoke(self, user: str, time: float) -> Revocation:
        keys = self._base.keys
        number = await self._base.home.commands.result(
            REVOKE,
            [keys.revoked, keys.revoked_order],
            [_bytes(user), repr(time), MAX_REVOKED],
        )
        return Revocation(int(number), user, time)

    async def revocations(self, after: int = 0) -> list[Revocation]:
        keys, commands = self._base.keys, self._base.home.commands
        users = await commands.ask("ZRANGEBYSCORE", keys.revoked_order, f"({after}", "+inf")
        if not users:
            return []
        found = []
        for user, text in zip(
            users, await commands.ask("HMGET", keys.revoked, *users), strict=True
        ):
            if text is not None:
                number, time, _ = text.split()
                found.append(Revocation(int(number), user.decode(), float(time)))
        return found

    async def _is_revoked(self, session: Session, born: bytes | None) -> bool:
        """Return whether a session's user was revoked after the session began."""
        if session.user is None:
            return False
        keys, commands = self._base.keys, self._base.home.commands
        text = await commands.ask("HGET", keys.revoked, _bytes(session.user))
        return text is not None and (born is None or int(text.split()[2]) >= int(born))

    def _drop_revoked(self, session: Session) -> None:
        key = self._key(session.namespace, session.key)
        args = [*self._start(session.namespace, session.key), "", 0]
        self._base.run(session.namespace, DROP, [key], args)

    # Keys.

    def _key(self, namespace: str, key: str) -> bytes:
        return _bytes(f"{self._base.keys.base(namespace)}session:{key}")

    def _start(self, namespace: str, key: str) -> list[Arg]:
        return [self._base.keys.base(namespace), self._base.skew, _bytes(key)]

    def _life(self, seconds: float) -> int:
        return int(seconds * 1_000)


def _session(reply: list[Any] | None) -> Session | None:
    if reply is None:
        return None
    data, owner, take, attempt, _ = reply
    try:
        session = unpack(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        logger.error("broker: a session that cannot be read is ignored: %s", error)
        return None
    session.owner, session.take, session.attempt = owner.decode(), int(take), int(attempt)
    return session


def _bytes(text: str) -> bytes:
    # Clients choose keys, and could choose half of a surrogate pair.
    return text.encode("utf-8", "surrogatepass")
