"""What may be registered as a guard or a handler, and what is refused there and then."""

from __future__ import annotations

import functools
import re
import types
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from crossband import ConnectionRefused, Hub, JWTAuth
from tests.clients import NewClient
from tests.clients.base import EventFailed, Refused
from tests.conftest import Serve

Register = Callable[[Any], object]


def plain(*args: Any) -> None: ...


async def later(*args: Any) -> None: ...


def generator(*args: Any) -> Iterator[None]:
    yield


async def async_generator(*args: Any) -> AsyncIterator[bool]:
    yield False


@types.coroutine
def old_coroutine(*args: Any) -> Generator[None, None, None]:
    yield


def one_more(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function one argument more than it is called with."""

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args, "more")

    return wrapper


@one_more
async def wrapped(socket: object, more: str) -> None: ...


class Check:
    """A class whose instances can be called."""

    def __call__(self, *args: Any) -> None: ...

    def method(self, *args: Any) -> None: ...

    async def later(self, *args: Any) -> None: ...

    def generator(self, *args: Any) -> Iterator[None]:
        yield

    @staticmethod
    def static(*args: Any) -> None: ...

    @classmethod
    async def of_the_class(cls, *args: Any) -> None: ...


class LaterCheck:
    async def __call__(self, *args: Any) -> None: ...


class GeneratorCheck:
    async def __call__(self, *args: Any) -> AsyncIterator[None]:
        yield


def returns_generator(*args: Any) -> Any:
    return generator(*args)


async def returns_async_generator(*args: Any) -> Any:
    return async_generator(*args)


class Seen:
    """A class that does its work when it is made."""

    def __init__(self, *args: Any) -> None: ...


def registrations() -> dict[str, Register]:
    hub = Hub()
    return {
        "use": hub.use,
        "use_event": hub.use_event,
        "on_any": hub.on_any,
        "connect": lambda function: hub.on("connect", function),
        "disconnect": lambda function: hub.on("disconnect", function),
        "authenticate": lambda function: Hub(authenticate=function),
        "authorize": lambda function: Hub(authorize=function),
        "event": lambda function: hub.on(f"event{len(hub.events)}", function),
    }


each_place = pytest.mark.parametrize("register", registrations().values(), ids=registrations())


CALLABLES: dict[str, Any] = {
    "function": plain,
    "async-function": later,
    "lambda": lambda *args: None,
    "object": Check(),
    "async-object": LaterCheck(),
    "method": Check().method,
    "async-method": Check().later,
    "static-method": Check.static,
    "class-method": Check.of_the_class,
    "partial": functools.partial(plain, 1),
    "partial-of-a-partial": functools.partial(functools.partial(later), 1),
    "partial-of-a-method": functools.partial(Check().method),
    "class": Seen,
    "builtin": print,
    "mock": Mock(),
    "async-mock": AsyncMock(),
    "generator-based-coroutine": old_coroutine,
}


@each_place
@pytest.mark.parametrize("function", CALLABLES.values(), ids=CALLABLES)
def test_callable_of_any_kind_is_taken(register: Register, function: Any) -> None:
    register(function)


def test_function_may_be_called_with_less_than_the_one_it_wraps() -> None:
    Hub().use(wrapped)


@each_place
@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (generator, "generator is a generator function"),
        (async_generator, "async_generator is a generator function"),
        (functools.partial(async_generator), "async_generator is a generator function"),
        (Check().generator, "Check.generator is a generator function"),
        (functools.partial(Check().generator, 1), "Check.generator is a generator function"),
        (GeneratorCheck(), "GeneratorCheck is a generator function"),
        (Check, "Check is a class: pass an instance, Check(…)"),
        (JWTAuth, "JWTAuth is a class: pass an instance, JWTAuth(…)"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_what_would_run_nothing_is_refused_at_registration(
    register: Register, function: Any, complaint: str
) -> None:
    with pytest.raises(TypeError, match=re.escape(complaint)):
        register(function)


@each_place
def test_what_cannot_be_called_is_refused_at_registration(register: Register) -> None:
    for function in (5, "check", [plain]):
        with pytest.raises(TypeError):
            register(function)


@pytest.mark.parametrize(
    ("place", "function", "complaint"),
    [
        ("use", lambda: None, "use() takes a function (socket), plain or async; <lambda> takes ()"),
        ("use", lambda a, b: None, "missing a required argument: 'b'"),
        ("use", functools.partial(lambda a, b: None), "<lambda> takes (a, b)"),
        ("use_event", lambda a, b: None, "use_event() takes a function (socket, event, args)"),
        ("on_any", lambda a: None, "on_any() takes a function (socket, event, args)"),
        ("connect", lambda: None, 'on("connect") takes a function (socket)'),
        ("disconnect", lambda a: None, 'on("disconnect") takes a function (socket, reason)'),
        ("authenticate", lambda: None, "Hub(authenticate=…) takes a function (handshake)"),
        ("authorize", lambda a, b: None, "Hub(authorize=…) takes a function (identity, action, "),
        ("event", lambda: None, "must take the socket as first argument"),
    ],
)
def test_function_of_other_arguments_is_refused_at_registration(
    place: str, function: Any, complaint: str
) -> None:
    with pytest.raises(TypeError, match=re.escape(complaint)):
        registrations()[place](function)


async def matches_later(name: str) -> bool:
    return name == "/a"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        (5, "of() takes a name, a compiled pattern or a function, not 5"),
        (lambda: True, "of() takes a function (name), which is not async; <lambda> takes ()"),
        # What it returns would be true for every name.
        (matches_later, "of() takes a function (name), which is not async; matches_later is async"),
        (generator, "generator is a generator function"),
        (Check, "Check is a class: pass an instance"),
    ],
)
def test_what_can_match_no_names_is_refused(name: Any, complaint: str) -> None:
    with pytest.raises(TypeError, match=re.escape(complaint)):
        Hub().of(name)


# What cannot be seen at registration is refused when it is called.


@pytest.mark.parametrize("middleware", [returns_generator, returns_async_generator])
async def test_generator_behind_a_function_lets_nobody_in(
    middleware: Any, serve: Serve, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()
    hub.use(middleware)
    server = await serve(hub)
    with pytest.raises(Refused, match="Internal server error"):
        await new_client("websocket").connect(server.url)
    assert "returned a generator: none of its code has run" in caplog.text


@pytest.mark.parametrize("middleware", [returns_generator, returns_async_generator])
async def test_generator_behind_a_function_lets_no_event_pass(
    middleware: Any, serve: Serve, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()
    handled: list[str] = []
    hub.use_event(middleware)
    hub.on("x", lambda socket: handled.append("x"))
    server = await serve(hub)
    client = new_client("websocket")
    await client.connect(server.url)
    with pytest.raises(EventFailed, match="Internal server error"):
        await client.call("x")
    assert not handled
    assert "returned a generator: none of its code has run" in caplog.text


def only(role: Any, *_: Any) -> Any:
    """Return a middleware; this is none."""

    def check(socket: object) -> None:
        raise ConnectionRefused(f"For {role} only")

    return check


def says_no(*args: Any) -> Any:
    return False


async def says_no_later(*args: Any) -> Any:
    return False


mistaken_middlewares = pytest.mark.parametrize(
    ("middleware", "complaint"),
    [
        (says_no, "says_no returned False: a middleware refuses by raising"),
        (says_no_later, "says_no_later returned False: a middleware refuses by raising"),
        (only, "only returned check, which was never called"),
    ],
)


@mistaken_middlewares
async def test_middleware_that_meant_to_refuse_lets_nobody_in(
    middleware: Any,
    complaint: str,
    serve: Serve,
    new_client: NewClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = Hub()
    hub.use(middleware)
    server = await serve(hub)
    with pytest.raises(Refused, match="Internal server error"):
        await new_client("websocket").connect(server.url)
    assert complaint in caplog.text


@mistaken_middlewares
async def test_middleware_that_meant_to_refuse_lets_no_event_pass(
    middleware: Any,
    complaint: str,
    serve: Serve,
    new_client: NewClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = Hub()
    handled: list[str] = []
    hub.use_event(middleware)
    hub.on("x", lambda socket: handled.append("x"))
    server = await serve(hub)
    client = new_client("websocket")
    await client.connect(server.url)
    with pytest.raises(EventFailed, match="Internal server error"):
        await client.call("x")
    assert not handled
    assert complaint in caplog.text


@pytest.mark.parametrize("answer", [True, "welcome", 0])
async def test_middleware_may_return_something(
    answer: Any, serve: Serve, new_client: NewClient
) -> None:
    def middleware(*args: Any) -> Any:
        return answer

    hub = Hub()
    hub.use(middleware)
    hub.use_event(middleware)
    hub.on("x", lambda socket: "handled")
    server = await serve(hub)
    client = new_client("websocket")
    await client.connect(server.url)
    assert await client.call("x") == "handled"


@pytest.mark.parametrize(
    "answer", [None, 1, "yes", plain], ids=["none", "number", "text", "function"]
)
async def test_authorize_allows_by_true_alone(
    answer: Any, serve: Serve, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    def authorize(*args: Any) -> Any:
        return answer

    server = await serve(Hub(authorize=authorize))
    with pytest.raises(Refused, match="Not allowed"):
        await new_client("websocket").connect(server.url, rooms=["a"])
    assert f"authorize must return True or False, not {type(answer).__name__}" in caplog.text
