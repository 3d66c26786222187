"""The commands: serve, demo, listen, publish, token.

Each command imports what only it needs when it runs: that is half of all imports, and a command
that takes a moment should also start in a moment.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import msgspec
import typer
from typer.core import TyperCommand

from crossband import __version__
from crossband.auth.keys import check_algorithms
from crossband.cli import settings, tokens
from crossband.client.doors import Door, locate
from crossband.errors import CrossbandError, StartError
from crossband.workers import WORKER_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossband.asgi import Hub
    from crossband.mounts import Mounted
    from crossband.server import ASGIApp, Server
    from crossband.server.worker import Worker

app: Final = typer.Typer(
    name="crossband",
    help="Realtime server: one hub for WebSocket, Socket.IO and Server-Sent Events.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_OPEN_WARNING: Final = (
    "--open: whoever reaches this server may connect, join any room and send to it"
)
# Printed below the addresses when the standalone hub starts.
_OPEN: Final = "Anybody who reaches it may connect; --jwt-secret makes it require tokens."


class _Command(TyperCommand):
    """A command whose arguments must be UTF-8."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        params: list[Any] = self.params
        for param in params:
            given = ctx.params.get(param.name)
            for value in given if isinstance(given, list) else [given]:
                if isinstance(value, str) and not settings.is_text(value):
                    # The value is not shown because it may be a secret.
                    raise typer.BadParameter("it is not UTF-8", ctx=ctx, param=param)
        return rest


def _filled(value: str | None) -> str | None:
    if value == "":
        raise typer.BadParameter("it is empty")
    return value


def _header(value: str | None) -> str | None:
    """Check an option that is sent as a header."""
    if value is not None and not (
        value.isascii() and value.isprintable() and value == value.strip()
    ):
        # The value is not shown because it may be a secret.
        raise typer.BadParameter("expected ASCII characters, without spaces around them")
    return _filled(value)


def _algorithm(value: str | None) -> str | None:
    try:
        check_algorithms(None if value is None else [value])
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc
    return value


_Token = Annotated[
    str | None,
    typer.Option(
        envvar="CROSSBAND_TOKEN",
        metavar="TOKEN",
        help="Token that identifies you.",
        callback=_header,
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        _print(f"crossband {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Realtime server: one hub for WebSocket, Socket.IO and Server-Sent Events."""


@app.command(cls=_Command)
@settings.with_settings
def serve(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="MODULE:NAME",
            help="Your hub, chat:hub, or an ASGI application that mounts one, main:app; "
            "without it, the standalone hub.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="TOML file to read settings from (or CROSSBAND_CONFIG).",
            show_default=False,
        ),
    ] = None,
    app_dir: Annotated[
        Path,
        typer.Option(
            metavar="DIRECTORY",
            help="Directory that MODULE is in; by default the current one.",
            show_default=False,
            exists=True,
            file_okay=False,
        ),
    ] = Path(),
    **options: Any,
) -> None:
    """Serve your hub or application, or the standalone hub.

    Each setting is read from its option, else from the environment (--ping-interval is
    CROSSBAND_PING_INTERVAL), else from the TOML file (ping_interval = 25). Otherwise it keeps
    your hub's value, or the default. Times are in seconds.
    """
    worker = _this_worker()
    given = _read_settings(options, config, warn=worker is None)
    where, access, hub_settings = given.listen, given.tokens, given.hub
    if worker is None and target is None and access.open:
        _warn(_OPEN_WARNING)
    if worker is None and given.processes.supervised:
        _supervise(given, app_dir.resolve())
        return
    from crossband.asgi import names_broker
    from crossband.cli import running
    from crossband.cli import target as targets
    from crossband.mounts import Mounted

    running.name_broker(given.processes.broker)

    generated: str | None = None
    note: str | None = None
    if target is not None:
        try:
            loaded = targets.load(target, app_dir.resolve())
        except targets.TargetError as exc:
            _fail(str(exc), code=2)
        served, hubs = loaded.app, loaded.hubs
        try:
            asks = any(mounted.hub.authenticate is not None for mounted in hubs)
            tokens.check_own_hub(access, options, target, asks=asks)
        except settings.SettingError as exc:
            _fail(str(exc), code=2)
        title = f"serves {target}"
        own = all(names_broker(mounted.hub) for mounted in hubs)
        if own and options["broker"] is not None and (worker is None or worker.number == 1):
            _warn(f"--broker is not used: {target} names its own broker")
    else:
        from crossband.standalone import create_hub

        try:
            auth = tokens.standalone_auth(access, where)
        except settings.SettingError as exc:
            _fail(str(exc), code=2)
        note = tokens.note(access, options, config) if auth else _OPEN
        if not access.open and not auth:
            hub_settings.setdefault("allowed_hosts", tokens.own_hosts(where))
        if not hub_settings.get("api_keys"):
            generated = _api_key(worker)
            hub_settings["api_keys"] = (generated,)
        served = create_hub(**auth)
        hubs = [Mounted(served, "")]
        title = "serves the standalone hub"
    for mounted in hubs:
        _configure(mounted.hub, hub_settings, given.limits)
    _run(served, hubs, given, title, worker, generated_key=generated, note=note)


@app.command(cls=_Command)
def demo(
    host: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help=f"{settings.HELP['host']} (default: 127.0.0.1)"),
    ] = None,
    port: Annotated[
        # A string, for the messages of `serve`.
        str | None,
        typer.Option(metavar="NUMBER", help=f"{settings.HELP['port']} (default: 8000)"),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(metavar="NUMBER", help=f"{settings.HELP['workers']} (default: 1)"),
    ] = None,
    broker: Annotated[str | None, typer.Option(metavar="URL", help=settings.HELP["broker"])] = None,
    is_open: Annotated[
        bool,
        typer.Option(
            "--open", help="Let in anybody, even on an address that other machines can reach."
        ),
    ] = False,
) -> None:
    """Serve the demo: pages that show a hub at work.

    A chat, a dashboard of this server, and the three doors side by side.
    """
    worker = _this_worker()
    options = {"host": host, "port": port, "workers": workers, "broker": broker}
    try:
        given = settings.split(settings.read(options, {}, None))
        tokens.check_open(is_open, given.listen)
    except settings.SettingError as exc:
        _fail(str(exc), code=2)
    if is_open and worker is None:
        _warn(_OPEN_WARNING)
    if given.processes.supervised and worker is None:
        _supervise(given, Path())
        return
    from crossband.cli import running
    from crossband.demo import create_demo
    from crossband.mounts import Mounted

    running.name_broker(given.processes.broker)
    key = _api_key(worker)
    hosts = () if is_open else tokens.own_hosts(given.listen)
    demo_app = create_demo(api_keys=(key,), allowed_hosts=hosts)
    hubs = [Mounted(demo_app.hub, "")]
    _run(demo_app, hubs, given, "serves the demo", worker, generated_key=key, page=True)


@app.command("listen", cls=_Command)
def listen_(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="A door, ws://HOST/ws, http://HOST/events or http://HOST/socket.io/; or http://HOST.",
        ),
    ],
    event: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Show only this event (repeatable)."),
    ] = None,
    room: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Listen in this room (repeatable)."),
    ] = None,
    namespace: Annotated[
        str,
        typer.Option(metavar="NAME", help="Namespace, such as /admin.", show_default=False),
    ] = "/",
    door: Annotated[
        Door | None,
        typer.Option(metavar="|".join(Door), help="Door to use, if URL does not say which."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    count: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after N events.")
    ] = None,
    last_event_id: Annotated[
        str | None,
        typer.Option(
            metavar="CURSOR", help="Start after this event instead of now.", callback=_header
        ),
    ] = None,
    token: _Token = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Accept any TLS certificate.")
    ] = False,
) -> None:
    """Follow the events of a server in the terminal, across reconnects.

    Events go to standard output, everything else to standard error. Ctrl-C ends it.
    """
    if not namespace.startswith("/"):
        _fail(f"--namespace: expected a name that begins with /, not {namespace!r}", code=2)
    try:
        found, address = locate(url, door, namespace)
    except ValueError as exc:
        _fail(str(exc), code=2)
    from crossband.cli import banner, listen
    from crossband.client.errors import Lost, Refused
    from crossband.client.listener import Listener

    listener = Listener(
        found,
        address,
        rooms=room or [],
        namespace=namespace,
        verify=not insecure,
        token=token,
        offset=last_event_id,
    )
    output = listen.Output(found, json, frozenset(event or ()))
    try:
        asyncio.run(listen.show(listener, output, limit=count))
    except KeyboardInterrupt:
        # On a line below the terminal's own ^C.
        typer.echo(f"\n{_plural(output.count, 'event')}", err=True)
    except (Refused, Lost) as exc:
        _fail(f"{address}: {exc}")
    except BrokenPipeError:
        # The reader, for example `head`, has read enough.
        banner.close_output()
    except listen.OutputFailed as exc:
        _fail_output(exc.reason)


@app.command("publish", cls=_Command)
def publish_(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="URL of the server, or of the hub's mount point; or of the hub's broker "
            "(redis://…), which needs no key.",
        ),
    ],
    event: Annotated[str, typer.Argument(metavar="EVENT", help="Name of the event.")],
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="JSON; - reads it from standard input."),
    ] = None,
    room: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only to clients in this room.")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(metavar="NAME", help="Namespace, such as /admin.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="CROSSBAND_API_KEY",
            metavar="KEY",
            help="Key that the server accepts.",
            callback=_header,
        ),
    ] = None,
    token: _Token = None,
    text: Annotated[bool, typer.Option("--text", help="DATA is text, not JSON.")] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Accept any TLS certificate.")
    ] = False,
) -> None:
    """Publish an event to the clients of a server."""
    from crossband.broker.opening import is_elsewhere
    from crossband.cli import publish as publishing

    elsewhere = is_elsewhere(url)
    try:
        if not elsewhere:
            publishing.locate(url)
    except ValueError as exc:
        _fail(str(exc), code=2)
    if data == "-":
        body = {"event": event, "data": _payload(sys.stdin.buffer.read(), text=text)}
    else:
        body = {"event": event, "data": _payload(data, text=text)}
    if room is not None:
        body["room"] = room
    if namespace is not None:
        body["namespace"] = namespace
    if elsewhere:
        try:
            cursor = publishing.publish_to_broker(url, body)
        except ValueError as exc:
            _fail(str(exc), code=2)
        except publishing.PublishError as exc:
            _fail(str(exc))
        _print(f"published, offset {cursor}")
        return
    try:
        published = publishing.publish(url, body, api_key=api_key, token=token, verify=not insecure)
    except publishing.PublishError as exc:
        _fail(str(exc))
    offset = f", offset {published.offset}" if published.offset is not None else ""
    _print(f"published to {_plural(published.clients, 'client')}{offset}")


@app.command("token", cls=_Command)
def token_(
    user: Annotated[
        str,
        typer.Option(metavar="NAME", help="User it identifies (claim sub).", callback=_filled),
    ],
    rooms: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B", help="Rooms to subscribe and publish to; patterns, such as team-*."
        ),
    ] = None,
    subscribe: Annotated[
        list[str] | None, typer.Option(metavar="A,B", help="Rooms to subscribe to.")
    ] = None,
    publish: Annotated[
        list[str] | None, typer.Option(metavar="A,B", help="Rooms to publish to.")
    ] = None,
    expires: Annotated[
        str,
        typer.Option(metavar="TIME", help="How long it is valid: 90 (seconds), 15m, 1h, 7d."),
    ] = "1h",
    claim: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Another claim, JSON or text (repeatable)."),
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Sign with this secret (or CROSSBAND_JWT_SECRET).",
            callback=_filled,
        ),
    ] = None,
    key_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Sign with this private key: PEM, JWK, or a secret.",
            callback=_filled,
        ),
    ] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Algorithm, if not the key's usual one.", callback=_algorithm
        ),
    ] = None,
    audience: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Audience it is for (claim aud).", callback=_filled),
    ] = None,
    issuer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Issuer it is from (claim iss).", callback=_filled),
    ] = None,
    kid: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the key, for a key set.", callback=_filled),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="TOML file with the server's secret, audience, issuer (or CROSSBAND_CONFIG).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a token, for development.

    Prints the token, and nothing else, to standard output. Options that are not given come from
    the server's settings, in the environment (CROSSBAND_JWT_…) or the TOML file.
    """
    access = _read_settings({}, config).tokens
    said = {"jwt_algorithms": algorithm, "jwt_audience": audience, "jwt_issuer": issuer}
    access = msgspec.structs.replace(
        access, **{name: (value,) for name, value in said.items() if value is not None}
    )
    if secret is not None or key_file is not None:
        # An option replaces a key of the other kind in the environment.
        access = msgspec.structs.replace(access, jwt_secret=secret, jwt_key_file=key_file)
    try:
        made = tokens.make(
            access,
            user=user,
            seconds=tokens.lifetime(expires),
            rooms=_names(rooms),
            subscribe=_names(subscribe),
            publish=_names(publish),
            claims=dict(map(tokens.claim, claim or ())),
            kid=kid,
        )
        refused = tokens.refusal(made, access)
    except settings.SettingError as exc:
        _fail(str(exc), code=2)
    if refused is not None:
        _warn(f"a server with these settings refuses this token: {refused}")
    _print(made)


def _names(given: list[str] | None) -> list[str]:
    return [name for item in given or () for part in item.split(",") if (name := part.strip())]


def _payload(data: str | bytes | None, *, text: bool) -> Any:
    if data is None:
        return None
    try:
        if text:
            return data.decode() if isinstance(data, bytes) else data
        return msgspec.json.decode(data)
    except UnicodeDecodeError as exc:
        _fail(f"DATA is not UTF-8 ({exc.reason} at byte {exc.start})", code=2)
    except (msgspec.DecodeError, RecursionError) as exc:
        _fail(f"DATA is not JSON ({exc}); --text sends it as text", code=2)


def _read_settings(
    options: dict[str, Any], config: Path | None, *, warn: bool = True
) -> settings.Given:
    if config is None and (given := os.environ.get("CROSSBAND_CONFIG")) is not None:
        if not given:
            _fail("CROSSBAND_CONFIG: expected the name of a file, not ''", code=2)
        config = Path(given)
    try:
        values = settings.read(options, os.environ, config)
    except settings.SettingError as exc:
        _fail(str(exc), code=2)
    for warning in settings.misspelt(os.environ) if warn else ():
        _warn(warning)
    return settings.split(values)


def _configure(hub: Hub, values: dict[str, Any], limits: dict[str, Any]) -> None:
    try:
        if limits:
            # Settings that are not given keep the hub's values.
            values["limits"] = msgspec.structs.replace(hub.settings.limits, **limits)
        hub.configure(**values)
    except (CrossbandError, ValueError, TypeError) as exc:
        _fail(str(exc), code=2)


def _this_worker() -> Worker | None:
    """Return the worker that this process is; None if it is not one."""
    if WORKER_VARIABLE not in os.environ:
        return None
    from crossband.server.worker import Worker

    return Worker.from_environment()


def _api_key(worker: Worker | None) -> str:
    """Return the API key of this run, the same for all its workers."""
    return secrets.token_hex(16) if worker is None else worker.api_key


def _supervise(given: settings.Given, directory: Path) -> None:
    if sys.platform == "win32":
        _fail("workers need a system where processes share sockets: Linux or macOS", code=2)
    from crossband.cli import running
    from crossband.server.parent import WorkersFailed

    if given.processes.state is not None and given.processes.broker is not None:
        _fail("--state is for the private engine, which --broker replaces: give one", code=2)
    try:
        running.supervise(given.listen, given.processes, _api_key(None), directory)
    except WorkersFailed as exc:
        _fail(f"{exc} (see above)", code=exc.code if exc.code > 0 else 1)
    except StartError as exc:
        _fail_start(exc, given.listen)


def _run(
    served: ASGIApp,
    hubs: Sequence[Mounted],
    given: settings.Given,
    title: str,
    worker: Worker | None,
    *,
    generated_key: str | None = None,
    page: bool = False,
    note: str | None = None,
) -> None:
    from crossband.cli import banner, running

    def show(server: Server, workers: str) -> None:
        banner.show(
            server, hubs, title, generated_key=generated_key, page=page, note=note, workers=workers
        )

    running.log_to_stderr(given.listen, worker)
    running.join(hubs, worker)
    try:
        running.serve(served, hubs, given.listen, worker, show)
    except (TypeError, ValueError) as exc:
        _fail(str(exc), code=2)
    except StartError as exc:
        _fail_start(exc, given.listen)


def _fail_start(error: StartError, where: settings.Listen) -> NoReturn:
    hint = f": --port {where.port + 1}" if "already in use" in str(error) else ""
    _fail(f"{error}{hint}")


def _print(text: str) -> None:
    try:
        typer.echo(text)
    except BrokenPipeError:
        raise
    except OSError as exc:
        _fail_output(exc)


def _fail_output(exc: OSError) -> NoReturn:
    from crossband.cli import banner

    banner.close_output()
    _fail(f"cannot write to standard output: {exc.strerror}")


def _warn(message: str) -> None:
    _tell((f"warning: {message}", "yellow"))


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _fail(message: str, *, code: int = 1) -> NoReturn:
    _tell(("error: ", "bold red"), message)
    raise typer.Exit(code)


def _tell(*parts: str | tuple[str, str]) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True, highlight=False).print(Text.assemble(*parts))
