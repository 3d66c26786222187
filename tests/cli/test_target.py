"""Targets of `crossband serve`: the hub they name, and what is said when they name none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crossband import Hub
from crossband.cli.target import TargetError, load

MODULE = """
from crossband import Hub

hub = Hub()
holder = type("Holder", (), {"hub": hub})()
number = 5

def create():
    return hub

class App:
    routes = []

app = App()
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a directory of modules, forgotten after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "tgt_chat.py").write_text(MODULE)
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


@pytest.mark.parametrize("target", ["tgt_chat:hub", "tgt_package.inner:hub", "tgt_chat:holder.hub"])
def test_hub_is_found(target: str, directory: Path) -> None:
    assert isinstance(load(target, directory), Hub)


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
        ("tgt_chat:create", "tgt_chat:create is a function, not a crossband.Hub"),
        ("tgt_chat:Hub", "tgt_chat:Hub is a class, not a crossband.Hub"),
        ("tgt_chat:app", "name the hub it mounts, or run the whole application with `uvicorn"),
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
