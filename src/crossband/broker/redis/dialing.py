"""Where a server is to be found: at its address, or where Sentinels say that it is now."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final

from crossband.broker.redis.address import Address, Login, Place
from crossband.broker.redis.link import Link, dial
from crossband.broker.redis.replies import ServerError, advice

# Seconds for one Sentinel to answer.
SENTINEL_TIME: Final = 1.0

# Errors that stay whatever one waits for.
FINAL: Final = frozenset({"WRONGPASS", "NOAUTH", "NOPERM"})

Hear = Callable[[Any], None]
Lost = Callable[[str], None]


class Unfit(Exception):
    """A server that cannot be used; the text says what to do."""

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        # Trying again will not help.
        self.final = final


async def connect(
    address: Address, place: Place | None, hear: Hear, lost: Lost, name: str
) -> tuple[Link, Place]:
    """Connect to a server; to the primary, if there are Sentinels. Raises Unfit."""
    if place is None:
        place = await primary(address) if address.kind == "sentinel" else address.places[0]
    try:
        return await dial(place, address.login, address.tls, hear, lost, name=name), place
    except ServerError as error:
        final = error.code in FINAL
        text = advice(error)
        if not final and "DB index" in str(error):
            text, final = f"Redis has no such database ({error})", True
        elif not final and "without any password" in str(error):
            text, final = f"Redis has no password, but the URL does ({error})", True
        raise Unfit(f"{place}: {text}", final=final) from None
    except OSError as error:
        # A certificate that does not fit will not fit later.
        final = isinstance(error, ssl.SSLCertVerificationError)
        raise Unfit(f"no connection to Redis at {place}: {error}", final=final) from None


async def primary(address: Address) -> Place:
    """Ask the Sentinels, one after another, where the primary is. Raises Unfit."""
    reasons = []
    for sentinel in address.places:
        try:
            async with asyncio.timeout(SENTINEL_TIME):
                found = await _ask(sentinel, address)
        except (TimeoutError, OSError) as error:
            reasons.append(f"{sentinel}: {str(error) or 'no answer'}")
        except ServerError as error:
            reasons.append(f"{sentinel}: {advice(error)}")
        else:
            if found is not None:
                return found
            reasons.append(f"{sentinel}: knows no {address.service!r}")
    raise Unfit("no Sentinel knows the primary: " + "; ".join(reasons))


async def _ask(sentinel: Place, address: Address) -> Place | None:
    link = await dial(sentinel, _sentinel_login(address), address.tls, _ignore, _ignore)
    try:
        found = await link.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service)
    finally:
        link.abort()
    return None if found is None else Place(found[0].decode(), int(found[1]))


def _sentinel_login(address: Address) -> Login:
    return address.sentinel_login


def _ignore(_: Any) -> None:
    pass
