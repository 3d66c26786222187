"""How to call this program from a shell, for commands that users are shown to copy."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def program() -> str:
    """Return what to type for `crossband` in the directory that the server runs in.

    That is `crossband` if the shell finds this installation under that name, else the path of
    its script, such as `.venv/bin/crossband` in a checkout.
    """
    called = Path(sys.argv[0])
    # Run by `python -m`, or inside another program: the script is next to the interpreter.
    script = called if called.name == "crossband" else Path(sys.executable).with_name("crossband")
    script = script.absolute()
    if not script.is_file():
        return f"{shlex.quote(sys.executable)} -m crossband"
    found = shutil.which("crossband")
    if found is not None and Path(found).samefile(script):
        return "crossband"
    here = Path.cwd()
    if not script.is_relative_to(here):
        return shlex.quote(str(script))
    relative = script.relative_to(here)
    # Without a slash the shell would search PATH for it.
    return shlex.quote(str(relative) if len(relative.parts) > 1 else f"./{relative}")
