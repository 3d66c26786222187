"""The commands as a user types them: processes, their output and exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from crossband import Hub, __version__
from crossband.cli import app
from crossband.server import Server
from crossband.standalone import create_hub
from tests.clients import NewClient
from tests.conftest import Serve
from tests.engines import Engine, free_port

TLS = Path(__file__).parents[1] / "tls"
# Variables of whoever runs the tests are not the tests'.
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("CROSSBAND_")}

HUB = """
import asyncio
from crossband import Hub

hub = Hub(websocket_path="/live", history_size=5, limits=Hub().settings.limits)

@hub.on("disconnect")
async def hang(socket, reason):
    print("hanging", flush=True)
    await asyncio.Event().wait()

@hub.on("size")
def size(socket):
    return hub.settings.history_size, hub.settings.limits.rooms
"""


class Command:
    """A running `crossband` with its output, in a terminal or without one."""

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path,
        env: dict[str, str],
        stdout: IO[str] | None = None,
        *,
        terminal: bool = False,
    ) -> None:
        master, slave = pty.openpty() if terminal else (None, None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "crossband", *arguments],
            cwd=cwd,
            env={**CLEAN, "TERM": "dumb", **env, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=slave or stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # What the terminal shows; None without one.
        self.screen: IO[str] | None = None
        if master is not None and slave is not None:
            os.close(slave)
            self.screen = os.fdopen(master)
        self.banner = ""

    @property
    def stdout(self) -> Any:
        return self.screen or self.process.stdout

    @property
    def stderr(self) -> Any:
        return self.process.stderr

    def started(self) -> str:
        """Read the banner, or without a terminal its one line; return the server's URL."""
        for line in self.stdout:
            self.banner += line
            if self.screen is None or "Ctrl-C" in line:
                found = re.search(r"https?://[^/\s;]+", self.banner)
                return found.group() if found else ""
        raise AssertionError(f"no banner:\n{self.banner}{self.stderr.read()}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal; return the exit code and the rest of the output."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out or "", err

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        if self.screen is not None:
            self.screen.close()


Run = Callable[..., Command]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start a `crossband` process in a directory that holds `my_hub.py`."""
    (tmp_path / "my_hub.py").write_text(HUB)
    with ExitStack() as stack:

        def start(
            *arguments: str, stdout: IO[str] | None = None, terminal: bool = False, **env: str
        ) -> Command:
            command = Command(arguments, tmp_path, env, stdout, terminal=terminal)
            stack.callback(command.kill)
            return command

        yield start


def invoke(*arguments: str, env: dict[str, str | None] | None = None, **options: Any) -> Result:
    """Run a command that ends by itself, in this process."""
    return CliRunner(env={"CROSSBAND_API_KEY": None, **(env or {})}).invoke(
        app, list(arguments), **options
    )


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_command_starts_without_what_only_others_need() -> None:
    code = "import sys, crossband.cli; print(*{'httpx', 'rich', 'uvicorn'} & sys.modules.keys())"
    env = {**CLEAN, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.check_output([sys.executable, "-c", code], env=env, text=True)
    assert found.split() == []


# serve.


def test_open_hub_on_loopback_is_for_this_machine(run: Run) -> None:
    def status(url: str, host: str) -> int:
        host += ":" + url.rpartition(":")[2]
        return httpx.get(
            f"{url}/healthz", headers={"Host": host}, trust_env=False, verify=False
        ).status_code

    own = [run(kind, "--port", "0") for kind in ("serve", "demo")]
    # Said otherwise, or where tokens decide.
    others = [
        run(*arguments, "--port", "0")
        for arguments in (
            ["serve", "--allowed-hosts", "evil.example"],
            ["serve", "--open"],
            ["demo", "--open"],
            ["serve", "--jwt-secret", "s" * 32],
            ["serve", "my_hub:hub"],
        )
    ]
    for command in own:
        url = command.started()
        names = ("localhost", "127.0.0.1", "[::1]", "evil.example")
        assert [status(url, name) for name in names] == [200, 200, 200, 400]
    for command in others:
        assert status(command.started(), "evil.example") == 200


def test_standalone_hub_is_served(run: Run) -> None:
    command = run("serve", "--port", "0", terminal=True)
    url = command.started()
    port = url.rpartition(":")[2]
    for line in (
        f"Crossband {__version__}  serves the standalone hub",
        f"ws://127.0.0.1:{port}/ws",
        f"crossband listen ws://127.0.0.1:{port}/ws",
        f"{url}/socket.io/",
        f'io("{url}")',
        f"curl -N {url}/events",
        f"curl {url}/api/status",
    ):
        assert line in command.banner
    assert httpx.get(f"{url}/api/status", verify=False).json()["clients"]["total"] == 0
    assert httpx.get(f"{url}/readyz", verify=False).status_code == 200
    # The banner's key is good for publishing, as its line says.
    found = re.search(r"crossband (publish .*) --api-key (\w+)", command.banner)
    assert found is not None
    key = found.group(2)
    published = run("publish", url, "chat:message", '{"content": "hi"}', "--api-key", key)
    assert published.process.wait(20) == 0
    assert command.end() == (0, "", "")


def test_banner_is_one_line_where_there_is_no_terminal(run: Run) -> None:
    command = run("serve", "--port", "0", "--api-keys", "key")
    url = command.started()
    assert command.banner == f"Crossband {__version__} serves the standalone hub at {url}\n"
    assert command.end() == (0, "", "")


def test_door_that_is_switched_off_is_not_in_the_banner(run: Run) -> None:
    command = run(
        *("serve", "--port", "0", "--websocket-path", "", "--api-path", "/v1/api"),
        terminal=True,
        CROSSBAND_EVENTS_PATH="",
    )
    url = command.started()
    assert "Socket.IO" in command.banner
    assert "/v1/api/status" in command.banner
    assert "WebSocket " not in command.banner
    assert "SSE" not in command.banner
    answer = httpx.get(f"{url}/events", trust_env=False, verify=False)
    assert answer.status_code == 404
    assert answer.json()["error"].endswith(": there is /socket.io/, /v1/api/status")


def test_each_run_has_a_key_of_its_own(run: Run) -> None:
    keys = set()
    for command in [run("serve", "--port", "0") for _ in range(2)]:
        command.started()
        found = re.search(r"API key of this run: (\w{20,})", command.banner)
        assert found is not None
        keys.add(found.group(1))
    assert len(keys) == 2


@pytest.mark.parametrize("terminal", [False, True])
def test_given_key_is_not_printed(terminal: bool, run: Run) -> None:
    command = run("serve", "--port", "0", terminal=terminal, CROSSBAND_API_KEYS="topsecret")
    url = command.started()
    assert "topsecret" not in command.banner
    headers = {"X-API-Key": "topsecret"}
    answer = httpx.post(
        f"{url}/api/broadcast", json={"event": "e", "data": 1}, headers=headers, verify=False
    )
    assert answer.status_code == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_it_while_clients_are_connected(run: Run, number: signal.Signals) -> None:
    command = run("serve", "--port", "0", "--log-level", "warning")
    url = command.started()
    with httpx.stream("GET", f"{url}/events", verify=False) as response:
        lines = response.iter_lines()
        while next(lines) != "event: welcome":
            pass
        command.process.send_signal(number)
        assert "event: server:shutdown" in list(lines)
    assert command.process.wait(20) == 0
    assert command.stderr.read() == ""


def test_second_signal_does_not_wait_for_handlers(run: Run) -> None:
    command = run("serve", "my_hub:hub", "--port", "0", "--shutdown-timeout", "60")
    url = command.started()
    with httpx.stream("GET", f"{url}/events", verify=False) as response:
        lines = response.iter_lines()
        while next(lines) != "event: welcome":
            pass
        command.process.send_signal(signal.SIGTERM)
        assert "event: server:shutdown" in list(lines)
    assert command.stdout.readline() == "hanging\n"
    while "stopping; a second Ctrl-C or SIGTERM ends it at once" not in command.stderr.readline():
        assert command.process.poll() is None
    command.process.send_signal(signal.SIGTERM)
    assert command.process.wait(20) == 128 + signal.SIGTERM


def test_own_hub_keeps_its_settings_unless_overridden(run: Run, tmp_path: Path) -> None:
    (tmp_path / "crossband.toml").write_text(
        "port = 0\nevents_path = '/from-file'\napi_path = '/from-file-api'\n[limits]\nrooms = 3"
    )
    command = run(
        "serve",
        "my_hub:hub",
        "--config",
        "crossband.toml",
        "--events-path",
        "/from-option",
        terminal=True,
        CROSSBAND_EVENTS_PATH="/from-environment",
        CROSSBAND_API_PATH="/from-environment-api",
    )
    url = command.started()
    assert "serves my_hub:hub" in command.banner
    assert f"{url.replace('http', 'ws')}/live" in command.banner
    assert f"{url}/from-option" in command.banner
    assert f"{url}/from-environment-api" in command.banner
    # It has no API key, and is not given one behind its back.
    assert "nobody can publish over HTTP" in command.banner
    assert (
        httpx.post(f"{url}/from-environment-api/broadcast", json={}, verify=False).status_code
        == 403
    )
    with httpx.stream("GET", f"{url}/from-option", verify=False) as response:
        lines = response.iter_lines()
        welcome = next(line for line in lines if line.startswith("data: "))
        client = json.loads(welcome.removeprefix("data: "))
        answer = httpx.post(
            f"{url}/from-option/{client['sid']}",
            params={"session": client["session"]},
            json={"type": "size"},
            verify=False,
        ).json()
    assert answer.get("data") == [5, 3], answer


APPLICATION = """
from fastapi import FastAPI
from crossband import Hub

hub = Hub(history_size=5)

@hub.on("look")
def look(socket):
    return [hub.settings.history_size, socket.connection.on_lane]

@hub.on_start
def start():
    print("started", flush=True)

def create_app():
    app = FastAPI()
    app.mount("/realtime", hub)
    app.get("/hello")(lambda: "world")
    return app

app = create_app()
"""


@pytest.mark.parametrize("name", ["app", "create_app"])
def test_application_is_served_with_the_settings_and_the_lane_of_its_hub(
    name: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "main.py").write_text(APPLICATION)
    command = run("serve", f"main:{name}", "--port", "0", "--history-size", "7", terminal=True)
    url = command.started()
    assert f"{url.replace('http', 'ws')}/realtime/ws" in command.banner
    assert f'io("{url}", {{ path: "/realtime/socket.io/" }})' in command.banner
    assert f"curl {url}/realtime/api/status" in command.banner
    assert command.banner.count("started") == 1
    assert httpx.get(f"{url}/hello", verify=False).json() == "world"
    with httpx.stream("GET", f"{url}/realtime/events", verify=False) as response:
        lines = response.iter_lines()
        welcome = next(line for line in lines if line.startswith("data: "))
        client = json.loads(welcome.removeprefix("data: "))
        answer = httpx.post(
            f"{url}/realtime/events/{client['sid']}",
            params={"session": client["session"]},
            json={"type": "look"},
            verify=False,
        ).json()
    assert answer.get("data") == [7, True], answer
    assert command.end()[0] == 0


def test_start_function_that_fails_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(
        "from crossband import Hub\nhub = Hub()\n"
        "@hub.on_start\ndef load():\n    raise LookupError('no database')\n"
    )
    command = run("serve", "failing:hub", "--port", "0")
    _, err = command.process.communicate(timeout=60)
    assert command.process.returncode == 1
    assert "failing.py" in err
    last = err.splitlines()[-1]
    assert last == "error: the on_start function load failed: LookupError: no database"


def test_config_file_from_the_environment(run: Run, tmp_path: Path) -> None:
    (tmp_path / "crossband.toml").write_text("port = 0\nwebsocket_path = '/from-file'")
    command = run("serve", terminal=True, CROSSBAND_CONFIG="crossband.toml")
    assert command.started()
    assert "/from-file" in command.banner


def test_module_in_another_directory(run: Run, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/their_hub.py").write_text(HUB)
    command = run("serve", "their_hub:hub", "--app-dir", "deep", "--port", "0")
    assert command.started()


def test_unix_socket(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    command = run("serve", "--uds", str(path), "--uds-mode", "660", terminal=True)
    command.started()
    assert path.stat().st_mode & 0o777 == 0o660
    assert f"curl --unix-socket {path}" in command.banner
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        assert client.get("http://hub/readyz").status_code == 200
    assert command.end()[0] == 0
    assert not path.exists()


def test_tls(run: Run) -> None:
    files = ("--ssl-certfile", f"{TLS}/certificate.pem", "--ssl-keyfile", f"{TLS}/key.pem")
    server = run("serve", "--port", "0", "--api-keys", "key", *files, terminal=True)
    url = server.started()
    assert url.startswith("https://")
    assert "wss://" in server.banner
    publish = ("publish", url, "news", "1", "--api-key", "key")
    assert invoke(*publish, "--insecure").exit_code == 0
    distrusting = invoke(*publish)
    assert distrusting.exit_code == 1
    assert "the certificate is not trusted (self-signed certificate)" in distrusting.stderr


def test_busy_port_is_told_in_one_line(run: Run) -> None:
    with taken_port() as port:
        command = run("serve", "--port", str(port))
        assert command.process.wait(20) == 1
    (line,) = command.stderr.read().splitlines()
    assert line == (
        f"error: port {port} on 127.0.0.1 is already in use; choose another port"
        f" (0 takes a free one): --port {port + 1}"
    )
    assert command.stdout.read() == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "http"], "--port: expected a port, 0 to 65535, not 'http'"),
        (["--ping-interval=-1"], "--ping-interval: expected a number of seconds, 0 or more"),
        (["--port", "65536"], "--port: expected a port, 0 to 65535, not '65536'"),
        (["--host", ""], "--host: expected a string that is not empty, not ''"),
        (["--limits-rooms", "0"], "--limits-rooms: must be a whole number above 0, not 0"),
        (["--events-path", "events"], "events_path must start with '/'"),
        (["--uds-mode", "999"], "--uds-mode: expected three octal digits, as a string, such as"),
        (["--status", "closed"], "--status: expected one of open, key, off, not 'closed'"),
        (["--api-path", "/ws"], "overlap"),
        (["--limits-message-rate=-1"], "expected a number per second, 0 or more, not '-1'"),
        (["--app-dir", "/no/such", "chat:hub"], "'/no/such' does not exist"),
        (["--forwarded-allow-ips", "foo"], "forwarded_allow_ips takes addresses and networks"),
        (["--config", "/no/such.toml"], "cannot read /no/such.toml: No such file"),
        (["no_such_module:hub"], "there is no module 'no_such_module'"),
        (["hub"], "expected module:hub, such as hub:hub"),
        (["crossband:Socket"], "crossband:Socket is a class, not a crossband.Hub"),
    ],
)
def test_what_cannot_be_served_is_told(arguments: list[str], message: str) -> None:
    result = invoke("serve", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--open", "--host", "no.such.host.invalid"], "cannot listen on 'no.such.host.invalid'"),
        (["--ssl-certfile", "/no/such.pem"], "cannot read the TLS certificate from /no/such.pem"),
        (["--ssl-keyfile", "/no/such.pem"], "without its certificate"),
        (["--uds", "/no/such/directory/s"], "No such file or directory"),
    ],
)
def test_what_cannot_be_listened_on_is_told(arguments: list[str], message: str) -> None:
    result = invoke("serve", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    *warnings, told = result.stderr.splitlines()
    assert message in told
    assert len(warnings) == ("--open" in arguments)


def test_bad_variable_is_told() -> None:
    result = invoke("serve", env={"CROSSBAND_LIMITS_ROOMS": "many"})
    assert result.exit_code == 2
    assert "CROSSBAND_LIMITS_ROOMS: expected a whole number, 0 or more, not 'many'" in result.stderr


def test_empty_name_of_the_config_file_is_told() -> None:
    result = invoke("serve", env={"CROSSBAND_CONFIG": ""})
    assert result.exit_code == 2
    assert "CROSSBAND_CONFIG: expected the name of a file, not ''" in result.stderr


def test_misspelt_variable_is_warned_about(run: Run) -> None:
    command = run("serve", "--port", "0", CROSSBAND_PING_INTERVL="1")
    command.started()
    assert "did you mean CROSSBAND_PING_INTERVAL?" in command.end()[2]


def test_help_tells_of_every_setting() -> None:
    text = " ".join(invoke("serve", "--help", env={"COLUMNS": "80"}).stdout.split())
    for option in ("--host", "--ping-interval", "--limits-outbox", "--no-recovery", "--app-dir"):
        assert option in text
    assert "Interval between heartbeats. (default: 25)" in text
    # A rate is no time.
    assert "--limits-message-rate NUMBER" in text


def test_list_of_commands_has_whole_sentences() -> None:
    for line in (
        invoke("--help", env={"COLUMNS": "80"}).stdout.partition("Commands:")[2].splitlines()
    ):
        assert not line.endswith("...")


def test_version() -> None:
    assert invoke("--version").stdout == f"crossband {__version__}\n"


# demo.


def test_demo_is_served(run: Run) -> None:
    command = run("demo", "--port", "0", terminal=True)
    url = command.started()
    assert f"Page       {url}/" in command.banner
    assert "html" in httpx.get(url, verify=False).text
    assert httpx.get(f"{url}/api/status", verify=False).status_code == 200
    assert command.end() == (0, "", "")


def test_demo_on_a_busy_port() -> None:
    with taken_port() as port:
        result = invoke("demo", "--port", str(port))
    assert result.exit_code == 1
    assert f"port {port} on 127.0.0.1 is already in use" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port=-1"], "--port: expected a port, 0 to 65535, not '-1'"),
        (["--port", "abc"], "--port: expected a port, 0 to 65535, not 'abc'"),
        (["--host", "0.0.0.0"], "anybody could connect to 0.0.0.0: give --open to let in anybody"),
    ],
)
def test_demo_that_cannot_be_served_is_told(arguments: list[str], message: str) -> None:
    result = invoke("demo", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_demo_is_open_when_told_so(run: Run) -> None:
    command = run("demo", "--port", "0", "--open", "--host", "0.0.0.0")
    command.started()
    assert "warning: --open: whoever reaches this server may connect" in command.end()[2]


@pytest.fixture
def full() -> Iterator[IO[str]]:
    """A file on a full disk."""
    path = Path("/dev/full")
    if not path.exists():
        pytest.skip("needs /dev/full")
    with path.open("w") as file:
        yield file


def test_server_runs_where_its_banner_cannot_be_written(run: Run, full: IO[str]) -> None:
    command = run("serve", "--port", "0", stdout=full)
    line = command.stderr.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found is not None
    assert "cannot write to standard output: No space left on device" in line
    assert httpx.get(f"{found[0]}/readyz", verify=False).status_code == 200
    code, _, err = command.end()
    assert (code, err) == (0, "")


def test_output_that_cannot_be_written_is_told(run: Run, full: IO[str]) -> None:
    for arguments in (("--version",), ("token", "--user", "alice", "--secret", "s" * 32)):
        command = run(*arguments, stdout=full)
        _, err = command.process.communicate(timeout=60)
        assert command.process.returncode == 1
        assert err == "error: cannot write to standard output: No space left on device\n"


# listen and publish.


@pytest.fixture
async def server(serve: Serve) -> Server:
    return await serve(create_hub(api_keys=("key",)))


async def lines_of(command: Command, count: int) -> list[str]:
    return [await asyncio.to_thread(command.stdout.readline) for _ in range(count)]


@pytest.mark.parametrize("door", ["websocket", "sse", "socketio"])
async def test_listen_until_interrupted(door: str, server: Server, run: Run) -> None:
    command = run("listen", server.url, "--door", door, "--json")
    assert "connected to" in await asyncio.to_thread(command.stderr.readline)
    hub = server.app
    assert isinstance(hub, Hub)
    await hub.emit("news", "one")
    await hub.emit("news", "two")
    found = [json.loads(line)["data"] for line in await lines_of(command, 2)]
    assert found == ["one", "two"]
    code, out, err = await asyncio.to_thread(command.end, signal.SIGINT)
    assert (code, out, err.strip()) == (0, "", "2 events")


async def test_listen_into_a_pipe_that_closes(server: Server, run: Run) -> None:
    command = run("listen", server.url)
    await asyncio.to_thread(command.stderr.readline)
    hub = server.app
    assert isinstance(hub, Hub)
    await hub.emit("news", "one")
    await lines_of(command, 1)
    command.stdout.close()
    await hub.emit("news", "two")
    err = await asyncio.to_thread(command.stderr.read)
    assert await asyncio.to_thread(command.process.wait, 20) in (0, 1)
    assert "Traceback" not in err
    command.process.stdout = None


async def test_listen_to_a_full_disk(server: Server, run: Run, full: IO[str]) -> None:
    command = run("listen", server.url, stdout=full)
    await asyncio.to_thread(command.stderr.readline)
    hub = server.app
    assert isinstance(hub, Hub)
    await hub.emit("news", "one")
    err = await asyncio.to_thread(command.stderr.read)
    assert await asyncio.to_thread(command.process.wait, 20) == 1
    assert err == "error: cannot write to standard output: No space left on device\n"


async def test_publish_reaches_listeners(server: Server, run: Run) -> None:
    command = run("listen", server.url, "--room", "news", "--count", "4", "--json")
    await asyncio.to_thread(command.stderr.readline)
    key = ("--api-key", "key")
    cases: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
        (("a", '{"n": [1, null]}'), {}),
        (("b", "bare words", "--text", "--room", "news"), {}),
        (("c", "-"), {"input": '"from stdin"\n'}),
        (("d",), {}),
    )
    for arguments, options in cases:
        result = await asyncio.to_thread(invoke, "publish", server.url, *arguments, *key, **options)
        assert result.exit_code == 0
        assert re.fullmatch(r"published to 1 client, offset \S+\n", result.stdout)
    result = await asyncio.to_thread(
        invoke, "publish", server.url, "e", "1", "--room", "empty", env={"CROSSBAND_API_KEY": "key"}
    )
    assert result.stdout.startswith("published to 0 clients")
    found = [json.loads(line) for line in await lines_of(command, 4)]
    assert [(each["event"], each["data"]) for each in found] == [
        ("a", {"n": [1, None]}),
        ("b", "bare words"),
        ("c", "from stdin"),
        ("d", None),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["e", "1"], "the server requires an API key (--api-key) or a token (--token)"),
        (["e", "1", "--api-key", "wrong"], "the server does not accept this API key"),
        (["connect", "1", "--api-key", "key"], "'connect' is a reserved event name"),
        (["", "1", "--api-key", "key"], "Invalid message format"),
        (["e", "1", "--api-key", "key", "--namespace", "/nowhere"], "Invalid namespace"),
        (["e", f'"{"x" * 70_000}"', "--api-key", "key"], "Message too large"),
    ],
)
async def test_refused_publication_is_told(
    arguments: list[str], message: str, server: Server
) -> None:
    result = await asyncio.to_thread(invoke, "publish", server.url, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


async def test_publish_reaches_the_broker_of_a_hub(serve: Serve, new_client: NewClient) -> None:
    with Engine() as engine:
        client = new_client("websocket")
        await client.connect((await serve(Hub(engine.url))).url, rooms=["news"])
        for arguments in (("1",), ("words", "--text", "--room", "news"), ("3", "--room", "other")):
            result = await asyncio.to_thread(invoke, "publish", engine.url, "event", *arguments)
            assert re.fullmatch(r"published, offset \S+\n", result.stdout), result.stderr
        admin = ("4", "--namespace", "/admin")
        assert invoke("publish", engine.url, "event", *admin).exit_code == 0
        assert [(await client.next_event("event")).data for _ in range(2)] == [1, "words"]
    result = await asyncio.to_thread(invoke, "publish", f"redis://127.0.0.1:{free_port()}", "e")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no connection to Redis at 127.0.0.1" in result.stderr
    result = invoke("publish", "redis://127.0.0.1", "connect")
    assert (result.exit_code, result.stderr) == (1, "error: 'connect' is a reserved event name\n")


async def test_publish_to_what_is_no_hub(server: Server, serve: Serve) -> None:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>"})

    other = await serve(page)
    result = await asyncio.to_thread(invoke, "publish", other.url, "e", "1")
    assert result.exit_code == 1
    assert "did not answer like a Crossband server" in result.stderr
    result = await asyncio.to_thread(invoke, "publish", f"{server.url}/elsewhere", "e", "1")
    assert result.exit_code == 1
    assert "Nothing at /elsewhere/api/broadcast" in result.stderr


async def test_nobody_there() -> None:
    async with Server(Hub()) as server:
        pass
    for command in (("publish", server.url, "e"), ("listen", server.url)):
        result = await asyncio.to_thread(invoke, *command)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "connection refused" in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["publish", "http://127.0.0.1", "e", "{"], "DATA is not JSON"),
        (["publish", "http://127.0.0.1", "e", "plain"], "--text sends it as text"),
        (["publish", "http://127.0.0.1"], "Missing argument 'EVENT'"),
        (["publish", "ftp://127.0.0.1", "e"], "expected a URL of http, https, not ftp"),
        (["publish", "http://127.0.0.1:0", "e"], "expected a port of 1 to 65535"),
        (["publish", "redis://127.0.0.1/first", "e"], "the database is a number, not 'first'"),
        (["listen"], "Missing argument 'URL'"),
        (["listen", "ftp://127.0.0.1"], "expected a URL of http, https, ws, wss, not ftp"),
        (["listen", "http://127.0.0.1", "--count", "0"], "--count"),
        (["listen", "http://127.0.0.1", "--door", "back"], "--door"),
        (["listen", "http://127.0.0.1", "--namespace", "x"], "begins with /, not 'x'"),
        (["publish", "http://127.0.0.1", "e", "--api-key", "ключ"], "expected ASCII characters"),
        (["publish", "http://127.0.0.1", "e", "--token", ""], "'CROSSBAND_TOKEN'): it is empty"),
        (["listen", "http://127.0.0.1", "--last-event-id", "ключ"], "'--last-event-id'"),
        (["listen", "ws://a..b"], "'a..b' is not a host name"),
        (["publish", "http://[::1", "e"], "http://[::1: Invalid IPv6 URL"),
        (["publish", "http://127.0.0.1", "\udcff"], "'EVENT': it is not UTF-8"),
        (["publish", "http://127.0.0.1", "e", "\udcff", "--text"], "'DATA'"),
        (["listen", "http://127.0.0.1", "--token", "ключ"], "'--token'"),
        (["listen", "http://127.0.0.1", "--room", "a", "--room", "\udcff"], "'--room'"),
        (["token", "--user", "a", "--claim", "a=\udcff"], "'--claim'"),
        (["token", "--user", "\udcff"], "'--user'"),
        (["lisen"], "No such command 'lisen'. Did you mean 'listen'?"),
    ],
)
def test_bad_usage_is_told(arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("input_", "options", "message"),
    [
        (b"\xff", [], "DATA is not JSON"),
        (b'"\xff"', [], "DATA is not UTF-8"),
        (b"plain\xff", ["--text"], "DATA is not UTF-8 (invalid start byte at byte 5)"),
    ],
)
def test_bad_standard_input_is_told(input_: bytes, options: list[str], message: str) -> None:
    result = invoke("publish", "http://127.0.0.1", "e", "-", *options, input=input_)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
