"""What type checkers take and refuse, besides what is refused when it runs.

mypy reads this file too (`make check`): where it refuses too much it says so, and where it
refuses no longer what it should, an ignore is left over, which is an error. What users see of the
types is checked here, by pyright too.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, assert_type, get_args, get_type_hints

import msgspec
import pytest

from crossband import Hub, Limits, Settings, Socket
from crossband.settings import HubSettings
from tests.blocks import ROOT
from tests.children import Child

SCRIPT = ROOT / "scripts/typecheck.py"

FIELDS = {field.name: field for field in msgspec.structs.fields(Settings)}


class ChatSocket(Socket):
    """A socket as some application wants to see it."""


class Named(Protocol):
    @property
    def id(self) -> str: ...


class Gate:
    """Middlewares as a class has them."""

    def __call__(self, socket: Socket) -> None: ...

    async def open(self, socket: Socket) -> None: ...


def nothing() -> None: ...


async def nothing_later() -> None: ...


def one(socket: Socket) -> None: ...


async def one_later(socket: Socket) -> None: ...


async def two_later(socket: Socket, reason: str) -> None: ...


def three(socket: Socket, event: str, args: list[Any]) -> None: ...


async def three_later(socket: Socket, event: str, args: list[Any]) -> None: ...


async def four_later(socket: Socket, event: str, args: list[Any], more: int) -> None: ...


async def never(socket: Socket) -> AsyncIterator[None]:
    yield


async def never_by_event(socket: Socket, event: str, args: list[Any]) -> AsyncIterator[None]:
    yield


# Settings.


def test_settings_for_type_checkers_are_those_there_are() -> None:
    typed = get_type_hints(HubSettings)
    assert list(typed) == list(FIELDS)
    for name, kind in typed.items():
        # Some take more than what is kept of them: a list for a tuple.
        assert FIELDS[name].type in (kind, *get_args(kind)), name


@pytest.mark.parametrize("name", FIELDS)
def test_setting_may_be_given_its_default(name: str) -> None:
    assert Hub(**{name: getattr(Settings(), name)}).settings == Settings()


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_names_are_taken_in_any_collection(kind: Callable[[list[str]], Any]) -> None:
    hub = Hub(
        cors_origins=kind(["https://x.example"]),
        trusted_proxies=kind(["10.0.0.0/8"]),
        api_keys=kind(["key"]),
    )
    assert hub.settings.cors_origins == ("https://x.example",)


def test_settings_are_checked() -> None:
    limits: dict[str, int] = {"rooms": 5}
    options: dict[str, Any] = {"retry": 1}
    hub = Hub(ping_interval=5, limits=limits, cors_origins=["null"], **options)
    hub.configure(limits=Limits(rooms=6), ping_timeout=0.5)
    with pytest.raises(ValueError):
        Hub(pingg=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError):
        Hub(ping_interval="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        Hub(cors_origins="https://x.example")  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        Hub(limits={"rooms": "x"})  # type: ignore[dict-item]
    with pytest.raises(ValueError):
        hub.configure(retri=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Hub(5)  # type: ignore[arg-type]


# Handlers.


def test_correct_middlewares_are_taken() -> None:
    hub = Hub()

    @hub.use
    async def of_its_socket(socket: ChatSocket) -> None: ...

    @hub.use
    def of_a_protocol(socket: Named) -> None: ...

    @hub.use
    def with_a_default(socket: Socket, strict: bool = True) -> None: ...

    @hub.use
    def of_anything(*args: Any, **kwargs: Any) -> Any: ...

    @hub.use
    def awaited(socket: Socket) -> Awaitable[None]:
        return one_later(socket)

    unknown: Callable[..., Any] = one
    for middleware in (one, one_later, Gate(), Gate().open, unknown):
        hub.use(middleware)
    hub.use(lambda socket: None)
    hub.use(functools.partial(two_later, reason="none"))
    assert_type(hub.use(Gate()), Gate)

    @hub.of("/admin").use_event
    def of_an_event(socket: ChatSocket, event: str, args: list[Any]) -> None: ...

    @hub.use_event
    async def of_arguments(*args: Any) -> None: ...

    for by_event in (three, three_later):
        hub.use_event(by_event)
        hub.on_any(by_event)


def test_correct_handlers_are_taken() -> None:
    hub = Hub()

    @hub.on("connect")
    async def connect(socket: ChatSocket) -> None: ...

    @hub.on("disconnect")
    def disconnect(socket: Socket, reason: str = "") -> None: ...

    @hub.on("first")
    async def first(socket: ChatSocket, count: int, *more: str, twice: bool = True) -> int:
        return count

    @hub.on("second")
    def second(*args: Any) -> None: ...

    hub.on("connect", one_later)
    hub.on("disconnect", two_later)
    hub.on("third", Gate())
    hub.on("fourth", functools.partial(two_later, reason="none"))
    hub.on("fifth", lambda socket, *args: len(args))
    assert_type(hub.on("sixth", Gate()), Gate)
    assert_type(hub.on("connect")(Gate()), Gate)


def test_middlewares_that_cannot_be_called_are_refused() -> None:
    hub = Hub()
    with pytest.raises(TypeError):
        hub.use(nothing)  # type: ignore[type-var]
    with pytest.raises(TypeError):
        hub.use(nothing_later)  # type: ignore[type-var]
    with pytest.raises(TypeError):
        hub.use(two_later)  # type: ignore[type-var]
    with pytest.raises(TypeError):
        hub.use(never)  # type: ignore[type-var]
    with pytest.raises(TypeError):
        hub.use(lambda: None)  # type: ignore[type-var]
    with pytest.raises(TypeError):
        hub.use(5)  # type: ignore[type-var]
    with pytest.raises(TypeError):
        hub.use_event(one)  # type: ignore[type-var]
    with pytest.raises(TypeError):
        hub.use_event(four_later)  # type: ignore[type-var]
    with pytest.raises(TypeError):
        hub.use_event(never_by_event)  # type: ignore[type-var]
    with pytest.raises(TypeError):
        hub.on_any(one)  # type: ignore[type-var]


def test_handlers_that_cannot_be_called_are_refused() -> None:
    hub = Hub()
    with pytest.raises(TypeError):
        hub.on("connect")(nothing_later)  # type: ignore[type-var]
    with pytest.raises(TypeError):
        hub.on("connect")(two_later)  # type: ignore[type-var]
    with pytest.raises(TypeError):
        hub.on("disconnect")(one)  # type: ignore[type-var]
    with pytest.raises(TypeError):
        hub.on("event")(nothing)  # type: ignore[type-var]
    with pytest.raises(TypeError):
        hub.on("event", nothing_later)  # type: ignore[type-var]


# What users write.


@pytest.mark.node
async def test_programs_of_users_and_code_of_the_docs_have_no_type_errors() -> None:
    async with Child(sys.executable, str(SCRIPT), "--users", cwd=ROOT) as child:
        # It takes 15 on an idle machine.
        assert await child.exit_code(within=280) == 0, child.output


def test_code_of_the_docs_is_checked_at_the_lines_it_has_in_its_page(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("typecheck", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = script.write_snippets(tmp_path)
    assert len(written) > 40
    for path, page in written.items():
        lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            if line and not line.startswith(("# mypy: ", "# pyright: ")):
                assert line.replace("from .", "from ") == lines[number], f"{page}:{number + 1}"
