#!/usr/bin/env python3
"""Checks types by mypy and by pyright: users have either.

    scripts/typecheck.py          everything
    scripts/typecheck.py --users  what users see: the examples, the Python code of the docs, and
                                  whether all names of the package have types

The Python blocks of the docs are written to build/snippets, each at the lines it has in its page:
what is found in one is reported with the page and the line.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.blocks import PAGES, name_of, steps  # noqa: E402

SNIPPETS = ROOT / "build/snippets"
USERS = ("examples", "build/snippets")
OURS = ("src", "tests", "benchmarks", "stress")
MYPY = (sys.executable, "-m", "mypy")
PYRIGHT = ("node_modules/.bin/pyright", "--pythonpath", sys.executable)
# The package as it is here, wherever it is installed.
ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

# Of what is found nowhere in particular.
START = {"start": {"line": 0}}

# These have no types, and what pyright guesses of them is wrong.
UNTYPED = re.compile(r"^(?:import socketio|from celery import Celery)$", re.MULTILINE)
LENIENT = """\
# mypy: allow-untyped-decorators, disable-error-code=import-untyped
# pyright: basic, reportArgumentType=false, reportOptionalCall=false
"""


def write_snippets(folder: Path) -> dict[Path, str]:
    """Write the Python blocks of all pages into a folder; return the page of each file."""
    shutil.rmtree(folder, ignore_errors=True)
    written: dict[Path, str] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = [step for step in steps(text) if step.language == "python"]
        # Pages use the same names: each is a package, in which its files import each other.
        package = folder / re.sub(r"\W", "_", name_of(page))
        names = re.findall(r"^<!-- run: file (\w+)\.py -->$", text, re.MULTILINE)
        siblings = re.compile(rf"^from (?=(?:{'|'.join(names)}) import\b)", re.MULTILINE)
        for block in blocks:
            _, _, name = block.directive.partition("run: file ")
            path = package / (name or f"line_{block.line + 1}.py")
            head = LENIENT if UNTYPED.search(block.code) else ""
            package.mkdir(parents=True, exist_ok=True)
            path.write_text(
                head + "\n" * (block.line - head.count("\n")) + siblings.sub("from .", block.code),
                encoding="utf-8",
            )
            written[path] = name_of(page)
        if len(list(package.glob("*.py"))) < len(blocks):
            raise SystemExit(f"{name_of(page)}: two blocks are saved under one name")
    return written


def run(*command: str) -> tuple[bool, str]:
    """Run a checker; return whether it is content, and what it says."""
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRON, capture_output=True, text=True, check=False
    )
    return done.returncode == 0, done.stdout + done.stderr


def check_names() -> tuple[bool, str]:
    """Look whether every name of the package has a type, which no checker needs to guess."""
    complete, output = run(
        *PYRIGHT, "--verifytypes", "crossband", "--ignoreexternal", "--outputjson"
    )
    lines = [
        f"{found.get('file', symbol['name'])}:{found.get('range', START)['start']['line'] + 1}: "
        f"{symbol['name']}: {found['message']}"
        for symbol in json.loads(output)["typeCompleteness"]["symbols"]
        for found in symbol["diagnostics"]
        # The others follow from those that are listed.
        if found["severity"] == "error" and "partially unknown" not in found["message"]
    ]
    return complete, "\n".join(lines)


def check(*folders: str) -> bool:
    """Check folders, and say what is wrong."""
    written = write_snippets(SNIPPETS)
    with ThreadPoolExecutor(2) as pool:
        # Begun in this order: the longest first.
        checks = [
            pool.submit(run, *PYRIGHT, *folders),
            pool.submit(run, *MYPY, *folders),
            pool.submit(check_names),
        ]
    for content, output in (each.result() for each in checks):
        if not content:
            output = output.replace(f"{ROOT}/", "")
            for path, page in written.items():
                output = output.replace(str(path.relative_to(ROOT)), page)
            sys.stderr.write(output.rstrip() + "\n")
    return all(content for content, _ in (each.result() for each in checks))


if __name__ == "__main__":
    sys.exit(not check(*USERS, *(() if "--users" in sys.argv[1:] else OURS)))
