"""Docs under test: what is documented is there, what is there is documented, and the code runs.

Every code block is run, or is in the table `ELSEWHERE` with the reason why not. An HTML comment
before a block says what to do with it:

    <!-- run: file NAME -->      save it under that name
    <!-- run: serve [NAME] -->   run the command and wait for its address, which stands in place of
                                 the one in the page. A hub that needs no options is served here
    <!-- run: restart -->        stop that server and start it again where it was
    <!-- run: listen -->         run the command in the background, once it has connected
    <!-- run: publish -->        run the commands; the lines between are what they print
    <!-- run: node [NAME] -->    run it by Node.js, in the background
    <!-- run: python [NAME] -->  run it in a thread
    <!-- run: browser [NAME] --> type it into the console of a tab on the server's page
    <!-- run: react NAME JSX --> type-check and bundle it, and show that element in a tab
    <!-- run: html NAME -->      show it in a tab, as a page of the server's
    <!-- run: shell -->          run the commands by a shell; the lines between are what they print
    <!-- run: pytest -->         run the tests that the page has saved; all pass
    <!-- run: curl -->           the first command's stream says what stands for <sid> and <session>
    <!-- run: wscat -->          hold that conversation over a WebSocket
    <!-- run: make -->           look whether the Makefile can do that, without doing it
    <!-- run: options -->        look whether the command knows those options, without running it
    <!-- run: unit NAME -->      read it as systemd does, with the options of its command
    <!-- run: dockerfile -->     look at the options of its command
    <!-- run: types -->          check its types, for code that needs what only the reader has
    <!-- run: status -->         compare its keys with those of `GET /api/status`
    <!-- run: toml -->           read it
    <!-- output: NAME -->        the next lines of that stream; `(any order)` where it has none
    <!-- engine: ADDRESS -->     start a Redis, whose address stands in place of that one
    <!-- cut -->                 reset every connection to the server
    <!-- publish: EVENT DATA --> publish over HTTP
    <!-- post: PATH JSON -->     the same, with a body of one's own
    <!-- say: PATH N EVENT DATA --> send an event N times over a raw WebSocket, and see them handled
    <!-- install: PACKAGE -->    have that npm package beside the files
    <!-- visit: NAME -->         open the server's own page in a tab of that name
    <!-- enter: NAME TEXT -->    type into the page's only box, once it is connected, and send it
    <!-- click: NAME BUTTON -->  press a button of a tab
    <!-- count: NAME PLACE N --> wait until the tab has so many of these
    <!-- offline: NAME -->       take the network from that tab; `online` gives it back
    <!-- shows: NAME PLACE TEXT --> wait until the tab has that text there, or the lines that follow

Ids, sessions and epochs in a page are examples. The first time one is met in an output, it
comes to stand for what was really printed there, in everything that follows.
"""

from __future__ import annotations

import asyncio
import configparser
import contextlib
import importlib.util
import json
import re
import shlex
import socket
import struct
import sys
import threading
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
import pytest
import typer
import websockets
from playwright.async_api import (
    Browser,
    CDPSession,
    ConsoleMessage,
    Route,
    expect,
)
from playwright.async_api import Page as BrowserPage
from typer.testing import CliRunner

import crossband
from crossband import Hub, cli
from crossband.cli.settings import SETTINGS
from crossband.errors import ERRORS, FINAL_CODES, CloseCode, is_final
from crossband.limits import Limits
from crossband.names import RESERVED, is_socket_id
from crossband.server import Server
from crossband.settings import Settings
from crossband.standalone import create_hub
from tests.blocks import DOCS, PAGES, ROOT, Step, name_of, steps
from tests.children import START, Child
from tests.clients.base import WAIT
from tests.engines import Engine

# Run as modules of the interpreter that runs the tests.
PROGRAMS: Final = ("crossband", "uvicorn")
# Of every process that a page starts.
ENVIRON: Final = {
    "CROSSBAND_RETRY": "0.1",
    "NO_COLOR": "1",
    "PYTHONPATH": str(Path(crossband.__file__).parents[1]),
    "PYTHONUNBUFFERED": "1",
}


# What is there is documented.


def rows(page: str) -> dict[str, list[str]]:
    """Return the cells of every table row of a page that begins with code, by that code."""
    found = {}
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and (match := re.match(r"`?([\w:]+)`?$", cells[0])):
            found[match[1]] = cells[1:]
    return found


def shown(default: object) -> str:
    """Return a default as the settings page writes it."""
    if isinstance(default, bool):
        return "on" if default else "off"
    if default in (None, "", ()):
        return "none"
    return f"{default:.15g}" if isinstance(default, float) else str(default)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_every_setting_is_documented_with_its_default(setting: Any) -> None:
    row = rows("reference/settings.md")[setting.key.removeprefix("limits.")]
    assert row[0].strip("`") == shown(setting.default)


def test_no_setting_is_documented_that_does_not_exist() -> None:
    fields = {
        field.name for field in (*msgspec.structs.fields(Settings), *msgspec.structs.fields(Limits))
    }
    listed = rows("reference/settings.md").keys() - {"setting", "limit"}
    assert listed == fields | {setting.key for setting in SETTINGS if "." not in setting.key}


def test_every_error_code_is_documented_with_its_text_and_status() -> None:
    documented = rows("reference/errors.md")
    documented.pop("code")
    assert {code: (row[0], int(row[1])) for code, row in documented.items()} == ERRORS


@pytest.mark.parametrize("page", ["websocket", "event-stream", "http-api"])
def test_door_answers_an_error_code_with_its_status(page: str) -> None:
    text = (DOCS / f"reference/{page}.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\d{3}) \| `(\w+)`", text, re.MULTILINE)
    assert listed
    assert [(code, int(status)) for status, code in listed] == [
        (code, ERRORS[code][1]) for _, code in listed
    ]


def test_every_close_code_is_documented() -> None:
    documented = rows("reference/close-codes.md")
    documented.pop("code")
    assert {
        int(code): (row[0].strip("`"), row[1] == "yes") for code, row in documented.items()
    } == {int(code): (code.name, code.reconnect) for code in CloseCode}


def test_every_event_of_the_hub_is_documented() -> None:
    documented = rows("reference/events.md")
    documented.pop("event")
    assert {name.strip("`") for name in documented} == RESERVED


def test_clients_of_the_how_to_stay_away_after_the_final_close_codes() -> None:
    text = (DOCS / "how-to/resume.md").read_text(encoding="utf-8")
    final = {int(code) for code in CloseCode if not code.reconnect}
    lists = re.findall(r"(?:final|FINAL) = [\[{]([\d, ]+)[\]}]", text)
    assert [{int(code) for code in each.split(",")} for each in lists] == [final, final]


@pytest.mark.parametrize("source", ["clients/js/src/websocket.ts", "pages/doors/src/websocket.ts"])
def test_javascript_stays_away_after_the_final_close_codes(source: str) -> None:
    text = (ROOT / source).read_text(encoding="utf-8")
    pattern = re.search(r"FINAL_CODES = /(.+)/;", text)
    assert pattern is not None
    found = {code for code in range(1000, 5000) if re.search(pattern[1], str(code), re.ASCII)}
    assert found == {code for code in range(1000, 5000) if is_final(code)}


def test_ranges_of_final_close_codes_are_documented() -> None:
    text = (DOCS / "reference/close-codes.md").read_text(encoding="utf-8")
    line = re.search(r"stay away after (.+);", text)
    assert line is not None
    ranges = [each.partition("-") for each in line[1].split(", ")]
    assert tuple((int(first), int(last or first)) for first, _, last in ranges) == FINAL_CODES


@pytest.mark.parametrize(
    ("source", "interface"),
    [("types", "Options"), ("types", "ClientEvents"), ("react", "SseOptions<T = any>")],
)
def test_javascript_options_and_events_are_documented(source: str, interface: str) -> None:
    text = (ROOT / f"clients/js/src/{source}.ts").read_text(encoding="utf-8")
    body = text.partition(f"export interface {interface} {{")[2].partition("\n}")[0]
    names = set(re.findall(r"^  (\w+)\??:", body, re.MULTILINE))
    page = (DOCS / "reference/javascript.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?`) \|", page, re.MULTILINE)
    assert names
    assert names <= {name for row in rows for name in re.findall(r"\w+", row)}


@pytest.fixture(scope="module")
def reference() -> Any:
    """The script that writes the reference of the Python API."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts/reference.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_api_reference_is_current(reference: Any) -> None:
    current = (DOCS / "reference/python.md").read_text(encoding="utf-8")
    assert current == reference.render(), "run scripts/reference.py"


def test_hub_has_what_the_reference_says_and_nothing_more(reference: Any) -> None:
    entries = {entry.name: entry for part in reference.PARTS.values() for entry in part}
    hub, namespace = entries["Hub"], entries["Namespace"]
    documented = {
        *hub.members,
        *namespace.members,
        *(line.partition(":")[0] for line, _ in (*hub.attributes, *namespace.attributes)),
        # Of a namespace alone; and another name of `to`.
    } - {"hub"} | {"in_"}
    assert {name for name in dir(Hub()) if not name.startswith("_")} == documented
    assert len(documented) <= 45


def test_readme_is_about_this_version() -> None:
    assert f"version {crossband.__version__}" in (ROOT / "README.md").read_text(encoding="utf-8")


# What is documented is there.


def prose_of(page: Path) -> str:
    """Return a page without its code blocks."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# Those beside the code have links, too.
LINKED = [*PAGES, *sorted((ROOT / "src").rglob("*.md")), *sorted((ROOT / "tests").rglob("*.md"))]


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    broken = []
    prose = prose_of(page)
    links = re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", prose)
    links += re.findall(r"^\[[^]]+\]: (\S+)", prose, re.MULTILINE)
    links += re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", prose)
    for link in links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_pages_that_the_code_names_are_there() -> None:
    folders = ("src", "tests", "examples", "benchmarks", "stress", "scripts", "pages", "clients")
    named = {
        name
        for page in [*ROOT.glob("*.md"), *(each for f in folders for each in sources(ROOT / f))]
        for name in re.findall(r"\bdocs/[\w/-]+\.md\b", page.read_text(encoding="utf-8"))
    }
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()


def sources(folder: Path) -> Iterator[Path]:
    """Yield what was written by hand in a folder."""
    for path in folder.rglob("*"):
        if (
            path.suffix in (".py", ".md", ".ts", ".tsx", ".html")
            and "node_modules" not in path.parts
        ):
            yield path


@pytest.mark.parametrize("index", [ROOT / "README.md", DOCS / "README.md"], ids=name_of)
def test_every_page_is_in_the_index(index: Path) -> None:
    text = index.read_text(encoding="utf-8")
    pages = {str(page.relative_to(index.parent)) for page in DOCS.rglob("*.md")}
    pages -= {"README.md", "docs/README.md"}
    assert {page for page in pages if f"({page})" not in text} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_compile(page: Path) -> None:
    for step in steps(page.read_text(encoding="utf-8")):
        if step.language == "python":
            compile(step.code, f"{page}:{step.line}", "exec")


# Blocks that are not run as they stand in a page, by its name: the first line, and what holds them.
ELSEWHERE: Final[Mapping[str, Mapping[str, str]]] = {
    "README.md": {"$ python3 -m venv .venv": "tests/test_wheel.py installs it so"},
    "CONTRIBUTING.md": {"cli                          commands": "tests/test_layers.py holds it"},
    "examples/README.md": {
        "$ uvicorn fastapi_app:app": "tests/examples runs each of them",
        "$ crossband listen http://127.0.0.1:8000/realtime/events": "tests/examples",
        "$ uvicorn jwt_app:app": "tests/examples logs in and connects",
    },
    "examples/chat/README.md": {"$ npm install": "tests/e2e drives that page"},
    "examples/dashboard/README.md": {"$ curl -N": "tests/demo follows and posts the same"},
    "docs/tutorial/first-hub.md": {"$ python3 -m venv .venv": "tests/test_wheel.py"},
    "docs/how-to/nginx.md": {
        '# Without "Upgrade"': "tests/nginx.py runs it in a real nginx",
        "upstream crossband {": "tests/test_nginx_nodes.py runs them there",
    },
    "docs/how-to/operate.md": {"the event loop has been": "lines of a log; tests/hub reads them"},
    "docs/how-to/shutdown.md": {"$ kill -TERM <pid>": "tests/test_shutdown.py sends the signals"},
    "docs/how-to/mount.md": {"$ crossband serve app:app": "tests/cli serves each of them"},
    "docs/how-to/workers.md": {
        "Crossband 0.1.0 serves": "tests/server/test_parent.py reads it",
        "$ pip install": "tests/server/test_engine.py finds it",
        "2026-": "tests/server/test_parent.py reads such lines",
        "ExecStart=": "a part of a unit; tests/test_docs.py reads that of one process",
        "$ CROSSBAND_BROKER=": "tests/test_workers.py runs each of them",
    },
    "src/crossband/server/README.md": {"parent  ": "a drawing"},
    "docs/how-to/redis.md": {
        "$ redis-server": "tests/engines.py starts one",
        "# Never evict": "tests/broker/test_redis.py starts one with them",
        "$ CROSSBAND_BROKER=": "tests/test_workers.py starts uvicorn so",
    },
    "docs/how-to/sentinel-and-cluster.md": {
        "sentinel monitor": "tests/engines.py starts some",
        "min-replicas": "tests/broker/test_redis_faults.py sets it",
    },
    "examples/scale/README.md": {
        "$ npm ci": "tests/examples/test_scale.py runs it",
        "$ docker compose": "tests/examples/test_scale.py compares its files",
    },
    "docs/how-to/plain-namespaces.md": {
        "POST /events/": "tests/transports/test_sse_door.py posts it"
    },
    "docs/how-to/deploy.md": {"chat.example.com {": "Caddy is not among what is set up for tests"},
    "docs/explanation/architecture.md": {"socket.io-client": "a drawing"},
    "docs/reference/events.md": {'{\n  "room"': "tests/test_presence.py compares its fields"},
    "docs/reference/event-stream.md": {": ok": "tests/transports reads streams byte by byte"},
    "docs/reference/python.md": {"": "signatures, which scripts/reference.py writes"},
}
DIRECTED: Final = ("run: ", "install: ", "output: ", "shows: ")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_of_code_is_run(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = [step for step in steps(text) if step.code]
    # Such as an indented one, which nothing above would see.
    assert 2 * len(blocks) == len(re.findall(r"^ *(?:```|~~~)", text, re.MULTILINE))
    elsewhere = ELSEWHERE.get(name_of(page), {})
    idle = [
        f"{name_of(page)}:{step.line}"
        for step in blocks
        if not step.directive.startswith(DIRECTED)
        and not step.code.lstrip().startswith(tuple(elsewhere))
    ]
    assert idle == [], "run them (the directives are at the head of this file)"
    for first, reason in elsewhere.items():
        assert any(step.code.lstrip().startswith(first) for step in blocks), f"no {first!r} is left"
        for path in re.findall(r"\w+/[\w./]+", reason):
            assert (ROOT / path).exists(), f"there is no {path}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_socket_ids_look_like_real_ones(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    # In the fields and places that hold one.
    shown = re.findall(r'"sid":\s*"(\w+)"|"from":\s*"(\w{20})"|Welcome, (\w{20})', text)
    ids = [each for found in shown for each in found if each]
    assert [each for each in ids if not is_socket_id(each)] == []
    # Such as other servers make.
    mixed = r"(?<![\w-])(?=\w*[A-Z])(?=\w*[a-z])(?=\w*\d)[A-Za-z0-9]{20}(?![\w-])"
    assert re.findall(mixed, text) == []


# The code runs.


class Page:
    """One page of the docs being followed."""

    # Example in the page: cursors' epochs, session keys, socket ids.
    EXAMPLE: Final = re.compile(
        r"(?<![\w-])(?:[0-9a-f]{10}(?=-\d)|[0-9a-f]{19}(?=\.0-\d)|[\w-]{32}|_[0-9a-f]{19})(?![\w])",
        re.ASCII,
    )
    REAL: Final = {
        10: "([0-9a-f]{10})",
        19: "([0-9a-f]{19})",
        32: r"([\w-]{32})",
        20: "(_[0-9a-f]{19})",
    }

    def __init__(self, directory: Path, browser: Browser, stack: contextlib.AsyncExitStack) -> None:
        self._directory = directory
        self._browser = browser
        self._stack = stack
        self._streams: dict[str, asyncio.Queue[str]] = {}
        self._tabs: dict[str, CDPSession] = {}
        self._visited: dict[str, BrowserPage] = {}
        self._files: dict[str, str] = {}
        # Those that run here, by name.
        self._servers: dict[str, Server] = {}
        # What stands in the page, and what it stands for.
        self._known: dict[str, str] = {}
        self._proxies: dict[str, Proxy] = {}
        # What its commands export.
        self._environ: dict[str, str] = {}

    async def follow(self, step: Step) -> None:
        """Do what a step says."""
        kind, _, rest = step.directive.partition(": ")
        if kind == "cut":
            for proxy in self._proxies.values():
                proxy.cut()
        elif kind == "engine":
            engine = await asyncio.to_thread(Engine().__enter__)
            self._stack.callback(engine.close)
            self._known[rest] = engine.address
        elif kind == "publish":
            event, _, data = rest.partition(" ")
            await self._broadcast(event, json.loads(data))
        elif kind == "output":
            await self._expect(rest, step.code)
        elif kind == "post":
            path, _, body = rest.partition(" ")
            await self._post(path, json.loads(body))
        elif kind == "say":
            path, times, event, data = rest.split(" ", 3)
            await self._say(path, int(times), event, json.loads(data))
        elif kind == "install":
            self._install()
        elif kind == "visit":
            await self._visit(rest)
        elif kind == "enter":
            name, _, text = rest.partition(" ")
            await self._enter(self._visited[name], text)
        elif kind == "shows":
            name, place, *line = rest.split(" ", 2)
            shown = self._visited[name].locator(f"{place} > *" if step.code else place)
            await expect(shown).to_have_text(step.code.splitlines() or line, timeout=WAIT * 1_000)
        elif kind == "click":
            name, _, button = rest.partition(" ")
            await self._visited[name].get_by_role("button", name=button).click()
        elif kind == "count":
            name, place, number = rest.split(" ")
            found = self._visited[name].locator(place)
            await expect(found).to_have_count(int(number), timeout=WAIT * 1_000)
        elif kind in ("offline", "online"):
            await self._visited[rest].context.set_offline(kind == "offline")
        elif kind == "run":
            what, _, name = rest.partition(" ")
            code = self._fill(step.code)
            match what:
                case "file":
                    self._files[name] = code
                    (self._directory / name).write_text(code, encoding="utf-8")
                case "serve":
                    await self._serve(name, step.code)
                case "restart":
                    await self._restart(name, step.code)
                case "listen":
                    await self._listen(code)
                case "publish":
                    await self._commands(step.code)
                case "node":
                    await self._node(name or what, code)
                case "python":
                    await self._python(name or what, code)
                case "browser":
                    await self._type(name or what, code)
                case "react":
                    tab, _, element = name.partition(" ")
                    await self._react(tab, element, code)
                case "html":
                    await self._open(name, code)
                case "shell":
                    await self._shell(step.code)
                case "pytest":
                    await self._pytest(step.code)
                case "curl":
                    await self._back_channel(code)
                case "wscat":
                    await self._converse(step.code)
                case "make":
                    await self._make(step.code)
                case "options":
                    check_options(step.code)
                case "unit":
                    unit = configparser.ConfigParser(interpolation=None, strict=False)
                    unit.optionxform = str  # type: ignore[assignment,method-assign]
                    unit.read_string(code)
                    check_options(unit["Service"]["ExecStart"])
                case "dockerfile":
                    (command,) = re.findall(r"^CMD (\[.+\])$", code, re.MULTILINE)
                    check_options(shlex.join(json.loads(command)))
                case "types":
                    pass  # test_typescript_of_the_pages_fits_its_types
                case "status":
                    await self._compare_status(code)
                case "toml":
                    tomllib.loads(code)
                case _:
                    raise AssertionError(f"unknown directive {step.directive!r}")

    # Examples.

    def _fill(self, text: str) -> str:
        """Put what was learned in the place of the page's examples."""
        for example, real in self._known.items():
            text = text.replace(example, real)
        return text

    def _matches(self, expected: str, line: str) -> bool:
        """Compare a line with the page's, and learn what its examples stand for."""
        pattern, at = "", 0
        new: list[str] = []
        for match in self.EXAMPLE.finditer(expected):
            pattern += re.escape(self._fill(expected[at : match.start()]))
            if match[0] in self._known:
                pattern += re.escape(self._known[match[0]])
            elif match[0] in new:
                pattern += rf"\{new.index(match[0]) + 1}"
            else:
                new.append(match[0])
                pattern += self.REAL[len(match[0])]
            at = match.end()
        found = re.fullmatch(pattern + re.escape(self._fill(expected[at:])), line)
        if found is not None:
            self._known.update(zip(new, found.groups(), strict=True))
        return found is not None

    async def _expect(self, name: str, code: str) -> None:
        any_order = name.endswith(" (any order)")
        lines = code.splitlines()
        stream = self._stream(name.removesuffix(" (any order)"))
        got = []
        for _ in lines:
            try:
                got.append(await asyncio.wait_for(stream.get(), WAIT))
            except TimeoutError:
                raise AssertionError(f"{name}: expected {lines}, got {got} and no more") from None
        if any_order:
            lines.sort()
            got.sort()
        for expected, line in zip(lines, got, strict=True):
            assert self._matches(expected, line), f"{name}: expected {expected!r}, got {line!r}"

    def _stream(self, name: str) -> asyncio.Queue[str]:
        return self._streams.setdefault(name, asyncio.Queue())

    # Processes.

    async def _start(
        self,
        words: list[str],
        *,
        directory: Path | None = None,
        code: str = "",
        take: Callable[[str], None] | None = None,
    ) -> Child:
        environ = {**ENVIRON, **self._environ}
        while "=" in words[0]:
            name, _, environ[name] = words.pop(0).partition("=")
        if words[0] in PROGRAMS:
            words = [sys.executable, "-m", *words]
        elif words[0] == "npx":
            self._install()
            words = [f"{ROOT}/node_modules/.bin/{words[1]}", *words[2:]]
        directory = directory or self._directory
        child = Child(*words, cwd=directory, env=environ, stdin=code, take=take)
        return await self._stack.enter_async_context(child)

    async def _commands_of(self, code: str) -> list[tuple[str, list[str]]]:
        """Return the commands and the lines each prints; `export` and `cd` are done at once."""
        commands = []
        code = re.sub(r"\\\n\s*", "", code)
        for block in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
            command, *lines = block.splitlines()
            if match := re.match(r"export (\w+)=(.*)$", command):
                async with self._bash(f"printf %s {match[2]}") as child:
                    assert await child.exit_code(within=START) == 0, child.output
                self._environ[match[1]] = child.output
            elif command.startswith("cd "):
                self._directory /= command.removeprefix("cd ")
            else:
                commands.append((command, lines))
        return commands

    def _bash(self, command: str) -> Child:
        """Make a shell in which Crossband's commands are those that are tested."""
        functions = "".join(
            f'{each}() {{ "{sys.executable}" -m {each} "$@"; }}; ' for each in PROGRAMS
        )
        environ = {**ENVIRON, **self._environ}
        script = f"set -euo pipefail; {functions}{command}"
        return Child("bash", "-c", script, cwd=self._directory, env=environ)

    async def _serve(self, name: str, code: str) -> None:
        ((command, _),) = await self._commands_of(code)
        words = [self._fill(word) for word in shlex.split(command)]
        port = "5173" if "vite" in words else "8000"
        if "--port" in words:
            at = words.index("--port")
            port = words[at + 1]
            del words[at : at + 2]
        file = words[-1].partition(":")[0] + ".py"
        if words[:2] == ["crossband", "serve"] and len(words) == 3 and file in self._files:
            target = await self._serve_here(name, words[2])
        elif words == ["crossband", "serve", "--api-keys", "secret"]:
            target = await self._start_server(name, create_hub(api_keys=["secret"]))
        else:
            # By name it may listen on ::1 alone.
            host = ["--host", "127.0.0.1"] if "vite" in words else []
            child = await self._start([*words, *host, "--port", "0"])
            target = int((await child.says(r"http://(?:127\.0\.0\.1|0\.0\.0\.0):(\d+)"))[1])
        proxy = self._proxies[name] = Proxy(target)
        await proxy.start()
        self._stack.push_async_callback(proxy.stop)
        self._known[f"127.0.0.1:{port}"] = f"127.0.0.1:{proxy.port}"

    async def _serve_here(self, name: str, target: str, *, port: int = 0) -> int:
        module, _, attribute = target.partition(":")
        scope: dict[str, Any] = {"__name__": module}
        exec(compile(self._files[f"{module}.py"], f"{module}.py", "exec"), scope)
        return await self._start_server(name, scope[attribute], port=port)

    async def _start_server(self, name: str, hub: Hub, *, port: int = 0) -> int:
        hub.configure(retry=0.1)
        server = self._servers[name] = Server(hub, port=port)
        await server.start()
        self._stack.push_async_callback(server.stop)
        return server.port

    async def _restart(self, name: str, code: str) -> None:
        (target,) = re.findall(r"^\$ crossband serve (\S+)$", code, re.MULTILINE)
        await self._servers[name].stop()
        await self._serve_here(name, target, port=self._proxies[name].target)

    async def _listen(self, code: str) -> None:
        ((command, _),) = await self._commands_of(code)
        child = await self._start(shlex.split(self._fill(command)))
        await child.says("connected to")

    async def _shell(self, code: str) -> None:
        if not self._proxies:
            # A page on what every server has.
            await self._serve("", "$ crossband serve --api-keys secret")
        for command, lines in await self._commands_of(code):
            async with self._bash(self._fill(command).replace("curl ", "curl -sS ")) as child:
                assert await child.exit_code(within=START) == 0, child.output
            got = child.output.splitlines()
            assert len(got) == len(lines), f"{command}: {child.output}"
            for expected, line in zip(lines, got, strict=True):
                assert self._matches(expected, line), f"expected {expected!r}, got {line!r}"

    async def _pytest(self, code: str) -> None:
        ((command, lines),) = await self._commands_of(code)
        child = await self._start([sys.executable, "-m", *shlex.split(command)])
        assert await child.exit_code(within=START) == 0, child.output
        # Without the time it took.
        assert child.output.splitlines()[-1].startswith(lines[-1]), child.output

    async def _back_channel(self, code: str) -> None:
        (stream, _), (post, _) = await self._commands_of(code)
        child = await self._stack.enter_async_context(self._bash(stream))
        welcome = await child.says(r'"sid":"(\S+?)","session":"(\S+?)"')
        post = post.replace("<sid>", welcome[1]).replace("<session>", welcome[2])
        async with self._bash(post.replace("curl ", "curl --fail ")) as poster:
            assert await poster.exit_code(within=START) == 0, poster.output

    async def _converse(self, code: str) -> None:
        command, _, *lines = code.splitlines()
        address = self._fill(command.rpartition(" ")[2])
        async with websockets.connect(address, proxy=None) as client:
            for line in lines:
                if line.startswith("> "):
                    await client.send(line[2:])
                else:
                    got = f"< {await asyncio.wait_for(client.recv(), WAIT)!s}"
                    assert self._matches(line, got), f"expected {line!r}, got {got!r}"

    async def _make(self, code: str) -> None:
        for command in re.findall(r"^\$ (make\b[^#\n]*)", code, re.MULTILINE):
            words = ["make", "--dry-run", *shlex.split(command)[1:]]
            async with Child(*words, cwd=ROOT) as child:
                assert await child.exit_code(within=START) == 0, child.output

    async def _compare_status(self, code: str) -> None:
        written, real = json.loads(code), Hub().status()
        if "nodes" in written:
            everywhere = await Hub().status_of_all()
            assert written.keys() == everywhere.keys()
            written, real = written["total"], everywhere["total"]
        assert written.keys() == real.keys()
        # What is not counted by a name that users give.
        for key in ("clients", "messages", "evictions", "refusals", "gaps"):
            assert written[key].keys() <= real[key].keys()

    async def _commands(self, code: str) -> None:
        for block in re.split(r"^\$ crossband ", code, flags=re.MULTILINE)[1:]:
            command, *lines = block.splitlines()
            words = shlex.split(self._fill(command))
            result = await asyncio.to_thread(CliRunner().invoke, cli.app, words)
            got = result.stdout.splitlines()
            assert len(got) == len(lines), f"{command}: {got} {result.output}"
            for expected, line in zip(lines, got, strict=True):
                assert self._matches(expected, line), f"expected {expected!r}, got {line!r}"

    async def _node(self, name: str, code: str) -> None:
        # Where socket.io-client is installed. The process ends with the test.
        await self._start(
            ["node", "--input-type=module", "-"],
            directory=ROOT / "tests/node",
            code=code,
            take=self._stream(name).put_nowait,
        )

    async def _python(self, name: str, code: str) -> None:
        stream = self._stream(name)
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def say(*values: object) -> None:
            loop.call_soon_threadsafe(stream.put_nowait, " ".join(map(str, values)))

        def run() -> None:
            try:
                exec(compile(code, name, "exec"), {"__name__": "__main__", "print": say})
            except BaseException:
                say(traceback.format_exc())
            with contextlib.suppress(RuntimeError):  # the test is over
                loop.call_soon_threadsafe(done.set_result, None)

        threading.Thread(target=run, name=name, daemon=True).start()
        if "127.0.0.1" not in code:
            # It only defines something.
            await done
            assert stream.empty(), stream.get_nowait()

    @property
    def _target(self) -> int:
        """The port of the page's first server, past the proxy."""
        return next(iter(self._proxies.values())).target

    async def _broadcast(self, event: str, data: Any) -> None:
        await self._post("/api/broadcast", {"event": event, "data": data, "room": "news"})

    async def _post(self, path: str, body: Any) -> None:
        async with httpx.AsyncClient(trust_env=False, verify=False) as client:
            answer = await client.post(
                f"http://127.0.0.1:{self._target}{path}",
                headers={"Authorization": "Bearer secret"},
                json=body,
            )
        assert answer.status_code == 200, answer.text

    async def _say(self, path: str, times: int, event: str, data: Any) -> None:
        async with websockets.connect(f"ws://127.0.0.1:{self._target}{path}", proxy=None) as client:
            welcome = json.loads(await client.recv())
            assert welcome["type"] == "welcome", welcome
            for number in range(times):
                await client.send(json.dumps({"type": event, "data": data, "id": number}))
            acks = 0
            while acks < times:
                message = json.loads(await asyncio.wait_for(client.recv(), WAIT))
                acks += message["type"] == "ack"
                assert message["type"] != "error", message

    # The browser.

    async def _type(self, name: str, code: str) -> None:
        """Evaluate code as the console of the developer tools does."""
        if name not in self._tabs:
            tab = await self._browser.new_page()
            self._stack.push_async_callback(tab.close)

            def heard(message: ConsoleMessage) -> None:
                # A page of JSON has no icon, which Chromium reports.
                if message.type == "log":
                    self._stream(name).put_nowait(message.text)

            tab.on("console", heard)
            where = "http://127.0.0.1:8000/api/status"
            if name in self._proxies:
                # A development server, which passes a mounted hub's paths on.
                where = f"http://127.0.0.1:{self._proxies[name].port}/realtime/api/status"
            await tab.goto(self._fill(where))
            self._tabs[name] = await tab.context.new_cdp_session(tab)
        result = await self._tabs[name].send(
            "Runtime.evaluate", {"expression": code, "replMode": True, "awaitPromise": True}
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]

    async def _open(self, name: str, html: str, script: Path | None = None) -> None:
        """Show a page of our own as if it were the server's; an error in it is one of the test."""
        tab = self._visited[name] = await self._browser.new_page()
        self._stack.push_async_callback(tab.close)
        failures: list[str] = []
        tab.on("pageerror", lambda error: failures.append(str(error)))
        base = self._fill("http://127.0.0.1:8000")

        async def answer(route: Route) -> None:
            path = route.request.url.removeprefix(base)
            if path == "/":
                await route.fulfill(content_type="text/html", body=f"<!doctype html>{html}")
            elif path == "/app.js":
                await route.fulfill(path=script)
            elif path.endswith("/crossband.min.js"):
                await route.fulfill(path=MINIFIED)
            else:
                await route.continue_()

        await tab.route("**/*", answer)
        await tab.goto(f"{base}/")
        assert failures == []

    async def _react(self, name: str, element: str, code: str) -> None:
        """Show an element of a block, bundled as an application would."""
        (component,) = re.findall(r"^<(\w+)", element)
        (self._directory / f"{name}.main.tsx").write_text(
            MAIN.format(component=component, name=name, element=element), encoding="utf-8"
        )
        bundle = self._directory / f"{name}.js"
        (self._directory / f"{name}.tsx").write_text(code, encoding="utf-8")
        self._install()
        words = (*ROLLDOWN, f"{name}.main.tsx", "--file", str(bundle))
        async with Child(*words, cwd=self._directory, env={"NO_COLOR": "1"}) as child:
            assert await child.exit_code(within=START) == 0, child.output
        html = '<div id="root"></div><script type="module" src="/app.js"></script>'
        await self._open(name, html, bundle)

    def _install(self) -> None:
        """Have what npm has installed here beside the page's files."""
        place = self._directory / "node_modules"
        if not place.exists():
            place.symlink_to(ROOT / "node_modules")

    async def _visit(self, name: str) -> None:
        tab = self._visited[name] = await self._browser.new_page()
        self._stack.push_async_callback(tab.close)
        await tab.goto(self._fill("http://127.0.0.1:8000/"))

    async def _enter(self, tab: BrowserPage, text: str) -> None:
        await expect(tab.locator("#state")).to_have_text("connected", timeout=WAIT * 1_000)
        await tab.get_by_role("textbox").fill(text)
        await tab.get_by_role("textbox").press("Enter")


ROLLDOWN: Final = (
    *("node_modules/.bin/rolldown", "--format", "esm"),
    *("--transform.define", 'process.env.NODE_ENV:"development"'),
)
TSC: Final = (
    *(
        "node_modules/.bin/tsc",
        "--noEmit",
        "--strict",
        "--skipLibCheck",
        "--jsx",
        "react-jsx",
        "--target",
        "es2022",
    ),
    *("--module", "esnext", "--moduleResolution", "bundler", "--types", "node"),
)
MINIFIED: Final = ROOT / "clients/js/dist/crossband.min.js"
MAIN: Final = """\
import {{ StrictMode }} from "react";
import {{ createRoot }} from "react-dom/client";
import {{ {component} }} from "./{name}";
createRoot(document.getElementById("root")!).render(<StrictMode>{element}</StrictMode>);
"""


def check_options(code: str) -> None:
    """Look whether `crossband` takes what the commands of a block give it."""
    program: Any = typer.main.get_command(cli.app)
    commands = re.findall(r"\bcrossband ((?:serve|demo|listen|publish|token)\b[^\n#']*)", code)
    assert commands
    for command in commands:
        name, *arguments = shlex.split(command)
        program.commands[name].make_context(name, arguments)


class Proxy:
    """A TCP proxy before a server, so that connections can be cut below HTTP."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        # None until started.
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        pair = (writer, far_writer)
        self._pairs.add(pair)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65_536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        try:
            await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
        finally:
            self._pairs.discard(pair)
            for each in pair:
                each.close()

    def cut(self) -> None:
        """Reset every connection."""
        for pair in list(self._pairs):
            for writer in pair:
                # With a zero linger, closing sends RST.
                with contextlib.suppress(OSError):
                    writer.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                writer.transport.abort()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()


RUNNABLE: Final = {
    page: text for page in PAGES if "<!-- run: " in (text := page.read_text(encoding="utf-8"))
}


@pytest.mark.browser
@pytest.mark.node
@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("path", RUNNABLE, ids=name_of)
async def test_code_of_the_page_runs(path: Path, browser: Browser, tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        # The examples' pages speak of the programs beside them.
        directory = path.parent if ROOT / "examples" in path.parents else tmp_path
        page = Page(directory, browser, stack)
        for step in steps(RUNNABLE[path]):
            try:
                await page.follow(step)
            except AssertionError as error:
                error.add_note(f"{name_of(path)}:{step.line}: {step.directive}")
                raise
