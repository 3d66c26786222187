"""Targets of `crossband serve`: the hub they name, and what is said when they name none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crossband import Hub
from crossband.cli.target import TargetError, load
from crossband.mounts import Mounted

MODULE = """
from crossband import Hub

hub = Hub()
holder = type("Holder", (), {"hub": hub})()
number = 5

def create():
    return hub

async def create_later():
    return hub

def create_with(name):
    return hub

def create_nothing():
    return None

def create_badly():
    raise LookupError("no database")

class App:
    routes = []

app = App()

async def greeter(scope, receive, send):
    pass
"""

APPS = """
import functools

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, Route

from crossband import Hub

hub = Hub()

fast = FastAPI()
fast.add_middleware(CORSMiddleware)
fast.mount("/realtime", hub)

deep = Starlette(routes=[Mount("/outer", Starlette(routes=[Mount("/inner/", app=hub)]))])
root = Starlette(routes=[Mount("/", hub)])
routed = Starlette(routes=[Route("/live/{rest:path}", hub)])
wrapped = CORSMiddleware(BaseHTTPMiddleware(fast, dispatch=None), allow_origins=["*"])

def with_header(app):
    async def middleware(scope, receive, send):
        await app(scope, receive, send)
    return middleware

closed_over = with_header(with_header(hub))
partial = functools.partial(lambda inner, scope, receive, send: inner(scope, receive, send), hub)

@functools.wraps(fast)
async def decorated(scope, receive, send):
    await fast(scope, receive, send)

async def by_name(scope, receive, send):
    await (hub if scope["path"].startswith("/rt") else other)(scope, receive, send)

async def other(scope, receive, send):
    await by_name(scope, receive, send)

class Dispatcher:
    def __init__(self):
        self.realtime = hub

    async def __call__(self, scope, receive, send):
        await self.realtime(scope, receive, send)

dispatcher = Dispatcher()
mounts = type("Mounts", (Dispatcher,), {"__init__": lambda self: None})()
mounts.mounts = {"/rt/": hub}

def create_app(path="/made"):
    app = FastAPI()
    app.mount(path, hub)
    return app
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a directory of modules, forgotten after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "tgt_chat.py").write_text(MODULE)
    (tmp_path / "tgt_apps.py").write_text(APPS)
    (tmp_path / "tgt_package").mkdir()
    (tmp_path / "tgt_package/__init__.py").touch()
    (tmp_path / "tgt_package/inner.py").write_text(MODULE)
    (tmp_path / "tgt_syntax.py").write_text("hub = Hub(\n")
    (tmp_path / "tgt_raises.py").write_text("def f():\n    raise KeyError('lost')\nf()\n")
    (tmp_path / "tgt_imports.py").write_text("import no_such_library\n")
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("tgt_"):
            del sys.modules[name]


@pytest.mark.parametrize(
    "target",
    ["tgt_chat:hub", "tgt_package.inner:hub", "tgt_chat:holder.hub", "tgt_chat:create"],
)
def test_hub_is_found(target: str, directory: Path) -> None:
    found = load(target, directory)
    assert isinstance(found.app, Hub)
    assert found.hubs == [Mounted(found.app, "")]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("fast", "/realtime"),
        ("deep", "/outer/inner"),
        ("root", ""),
        ("routed", "/live"),
        ("wrapped", "/realtime"),
        ("closed_over", ""),
        ("partial", ""),
        ("decorated", "/realtime"),
        ("by_name", ""),
        ("dispatcher", ""),
        ("mounts", "/rt"),
        ("create_app", "/made"),
    ],
)
def test_hub_is_found_in_an_application(name: str, path: str, directory: Path) -> None:
    found = load(f"tgt_apps:{name}", directory)
    module = sys.modules["tgt_apps"]
    assert found.hubs == [Mounted(module.hub, path)]
    assert name == "create_app" or found.app is getattr(module, name)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("tgt_chat", "'tgt_chat' does not name a hub; expected module:hub, such as tgt_chat:hub"),
        ("tgt_chat:", "expected module:hub, such as tgt_chat:hub"),
        (":hub", "expected module:hub, such as chat:hub"),
        ("", "expected module:hub"),
        ("tgt_chat.py", "such as tgt_chat:hub"),
        ("tgt_chat.py:hub", "'tgt_chat.py' is a file; expected a module, such as tgt_chat:hub"),
        ("./tgt_package/inner.py:hub", "expected a module, such as tgt_package.inner:hub"),
        ("tgt_none:hub", "there is no module 'tgt_none' in "),
        ("tgt_package.none:hub", "there is no module 'tgt_package.none' in "),
        ("tgt_none.inner:hub", "there is no module 'tgt_none' in "),
        ("tgt_chat.inner:hub", "there is no module 'tgt_chat.inner'"),
        ("..:hub", "cannot import"),
        ("tgt_imports:hub", "cannot import tgt_imports: No module named 'no_such_library'"),
        ("tgt_syntax:hub", "cannot import tgt_syntax: SyntaxError: '(' was never closed"),
        ("tgt_raises:hub", "cannot import tgt_raises: KeyError: 'lost'"),
        ("tgt_chat:hb", "module 'tgt_chat' has no 'hb'; did you mean tgt_chat:hub?"),
        ("tgt_chat:number", "tgt_chat:number is of type int, not a crossband.Hub"),
        ("tgt_chat:create_with", "tgt_chat:create_with is a function that takes arguments, not a"),
        ("tgt_chat:create_later", "tgt_chat:create_later is async; expected a plain function"),
        ("tgt_chat:create_nothing", "create_nothing returned something that is of type NoneType"),
        ("tgt_chat:create_badly", "tgt_chat:create_badly failed: LookupError: no database\n"),
        ("tgt_chat:Hub", "tgt_chat:Hub is a class, not a crossband.Hub"),
        ("tgt_chat:app", "with no hub in it. Mount one, app.mount("),
        ("tgt_chat:greeter", "tgt_chat:greeter is an application with no hub in it. Mount one"),
        ("tgt_chat:number.real.x", "has no 'x'"),
    ],
)
def test_what_is_no_hub_is_told(target: str, message: str, directory: Path) -> None:
    with pytest.raises(TargetError) as caught:
        load(target, directory)
    assert message in str(caught.value)


def test_failing_module_shows_its_own_lines_only(directory: Path) -> None:
    with pytest.raises(TargetError) as caught:
        load("tgt_raises:hub", directory)
    text = str(caught.value)
    assert "raise KeyError('lost')" in text
    assert "importlib" not in text
    assert "crossband" not in text
