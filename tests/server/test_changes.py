"""`--reload` sees which Python files change, and looks only where somebody edits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from crossband.server.changes import changes
from tests.clients.base import WAIT


def fill(directory: Path) -> None:
    for name in ("main.py", "shop/cart.py", "page.html", "data/rows.py"):
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("1")
    (directory / "venv").mkdir()
    (directory / "venv" / "pyvenv.cfg").touch()


def edit(name: str) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        (directory / name).write_text("2")

    return write


def remove(directory: Path) -> None:
    (directory / "shop/cart.py").unlink()


def add(directory: Path) -> None:
    # Nobody edits these by hand.
    for unwatched in (".git", "node_modules", "__pycache__", "venv"):
        (directory / unwatched).mkdir(exist_ok=True)
        (directory / unwatched / "other.py").touch()
    (directory / "page.html").write_text("2")
    (directory / "shop" / "new.py").touch()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (edit("main.py"), "main.py"),
        (edit("shop/cart.py"), "shop/cart.py"),
        (remove, "shop/cart.py"),
        (add, "shop/new.py"),
    ],
)
async def test_changes_of_python_files_are_seen(
    change: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    fill(tmp_path)
    async with asyncio.timeout(WAIT):
        seen = changes(tmp_path)
        following = asyncio.ensure_future(anext(seen))
        # It looks before it first waits.
        await asyncio.sleep(0)
        change(tmp_path)
        assert await following == name
