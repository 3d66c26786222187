"""What is shown as the command to type works in a shell, in the server's directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from crossband.invocation import program


def shown(directory: Path, script: Path, path: str = "/nowhere") -> str:
    """Return what a program with this path, run in this directory, calls itself."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[0] = {str(script)!r}; {SHOW}"],
        cwd=directory,
        env={"PATH": path, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


SHOW = "from crossband.invocation import program; print(program())"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Return an installed command, in a checkout whose name has a blank."""
    script = tmp_path / "check out/.venv/bin/crossband"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\necho it is me\n")
    script.chmod(0o755)
    return script


def run(command: str, directory: Path, path: str = "/nowhere") -> str:
    return subprocess.run(
        command,
        shell=True,
        cwd=directory,
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    ).stdout


@pytest.mark.parametrize(
    ("directory", "expected"),
    [
        ("check out", ".venv/bin/crossband"),
        ("check out/.venv/bin", "./crossband"),
        (".", "'check out/.venv/bin/crossband'"),
    ],
)
def test_command_is_relative_to_the_directory_it_is_run_in(
    script: Path, tmp_path: Path, directory: str, expected: str
) -> None:
    where = tmp_path / directory
    assert shown(where, script) == expected
    assert run(expected, where) == "it is me\n"


def test_command_elsewhere_has_its_whole_path(script: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert run(shown(elsewhere, script), elsewhere) == "it is me\n"


def test_command_that_the_shell_finds_has_its_plain_name(script: Path, tmp_path: Path) -> None:
    path = str(script.parent)
    assert shown(tmp_path, script, path) == "crossband"


def test_another_installation_on_the_path_is_not_taken_for_this(
    script: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other/crossband"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\necho another\n")
    other.chmod(0o755)
    assert shown(tmp_path / "check out", script, str(other.parent)) == ".venv/bin/crossband"


def test_module_that_has_no_script_is_run_by_its_interpreter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["__main__.py"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert program() == f"{tmp_path}/python -m crossband"
