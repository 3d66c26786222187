"""The commands: serve, demo, listen, publish."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from crossband import __version__
from crossband.cli import banner, listen, settings
from crossband.cli import publish as publishing
from crossband.errors import CrossbandError
from crossband.server import Server, StartError

if TYPE_CHECKING:
    from crossband.asgi import Hub
    from crossband.server import ASGIApp, LogLevel
    from crossband.settings import Settings

app = typer.Typer(
    name="crossband",
    help="Realtime server: one hub for WebSocket, Socket.IO and Server-Sent Events.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_SERVER_LEVELS: Final[dict[str, LogLevel]] = {"info": "warning", "debug": "info"}

_errors = Console(stderr=True, soft_wrap=True, highlight=False)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"crossband {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Realtime server: one hub for WebSocket, Socket.IO and Server-Sent Events."""


@app.command()
@settings.with_settings
def serve(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="MODULE:HUB",
            help="Your hub, such as chat:hub; without one, the standalone hub.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Settings from a TOML file (or CROSSBAND_CONFIG).",
            show_default=False,
        ),
    ] = None,
    app_dir: Annotated[
        Path,
        typer.Option(
            metavar="DIRECTORY",
            help="Where MODULE is; the current directory by default.",
            show_default=False,
        ),
    ] = Path(),
    **options: Any,
) -> None:
    """Serve a hub: yours, or one for any client, fed over HTTP.

    Each setting is read from its option, else from the environment (--ping-interval is
    CROSSBAND_PING_INTERVAL), else from the TOML file (ping_interval = 25), else it is your
    hub's own or the default. Times are in seconds.
    """
    where, hub_settings, limits = _read_settings(options, config)
    from crossband.cli import target as targets

    generated: str | None = None
    if target is not None:
        try:
            hub = targets.load(target, app_dir.resolve())
        except targets.TargetError as exc:
            _fail(str(exc), code=2)
        title = f"serves {target}"
    else:
        from crossband.standalone import create_hub

        if not hub_settings.get("api_keys"):
            generated = secrets.token_hex(16)
            hub_settings["api_keys"] = (generated,)
        hub = create_hub()
        title = "serves the standalone hub"
    _configure(hub, hub_settings, limits)
    _run(hub, hub.settings, where, title, generated_key=generated)


@app.command()
def demo(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
) -> None:
    """Serve the demo: three doors side by side, and a dashboard of this server."""
    from crossband.demo import create_demo

    key = secrets.token_hex(16)
    demo_app = create_demo(api_keys=(key,))
    where = settings.Listen(host=host, port=port)
    _run(demo_app, demo_app.settings, where, "serves the demo", generated_key=key, page=True)


@app.command("listen")
def listen_(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="ws://HOST/ws, http://HOST/events, http://HOST/socket.io/, or just the server's.",
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
        listen.Door | None, typer.Option(help="Which door URL means, where it does not say.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    count: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after N events.")
    ] = None,
    last_event_id: Annotated[
        str | None,
        typer.Option(metavar="CURSOR", help="Begin after this event instead of now."),
    ] = None,
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
        found, address = listen.locate(url, door, namespace)
    except ValueError as exc:
        _fail(str(exc), code=2)
    listener = listen.Listener(
        found,
        address,
        rooms=room or [],
        namespace=namespace,
        verify=not insecure,
        offset=last_event_id,
    )
    output = listen.Output(found, json, frozenset(event or ()))
    try:
        asyncio.run(listen.follow(listener, output, limit=count))
    except KeyboardInterrupt:
        # Below the terminal's own ^C.
        typer.echo(f"\n{_plural(output.count, 'event')}", err=True)
    except (listen.Refused, listen.Lost) as exc:
        _fail(f"{address}: {exc}")
    except BrokenPipeError:
        # The reader, `head` say, has enough. Nothing is left to flush into.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@app.command("publish")
def publish_(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server's, or its mount point.")],
    event: Annotated[str, typer.Argument(metavar="EVENT")],
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
            envvar="CROSSBAND_API_KEY", metavar="KEY", help="Key that the server accepts."
        ),
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="DATA is text, not JSON.")] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Accept any TLS certificate.")
    ] = False,
) -> None:
    """Publish an event to the clients of a server."""
    try:
        publishing.locate(url)
    except ValueError as exc:
        _fail(str(exc), code=2)
    if data == "-":
        data = sys.stdin.read()
    body: dict[str, Any] = {"event": event, "data": _payload(data, text=text)}
    if room is not None:
        body["room"] = room
    if namespace is not None:
        body["namespace"] = namespace
    try:
        published = publishing.publish(url, body, api_key=api_key, verify=not insecure)
    except publishing.PublishError as exc:
        _fail(str(exc))
    offset = f", offset {published.offset}" if published.offset is not None else ""
    typer.echo(f"published to {_plural(published.clients, 'client')}{offset}")


def _payload(data: str | None, *, text: bool) -> Any:
    if data is None:
        return None
    if text:
        return data
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as exc:
        _fail(f"DATA is not JSON ({exc}); --text sends it as text", code=2)


def _read_settings(
    options: dict[str, Any], config: Path | None
) -> tuple[settings.Listen, dict[str, Any], dict[str, Any]]:
    if config is None and os.environ.get("CROSSBAND_CONFIG"):
        config = Path(os.environ["CROSSBAND_CONFIG"])
    try:
        values = settings.read(options, os.environ, config)
    except settings.SettingError as exc:
        _fail(str(exc), code=2)
    for warning in settings.misspelt(os.environ):
        _errors.print(Text(f"warning: {warning}", "yellow"))
    return settings.split(values)


def _configure(hub: Hub, values: dict[str, Any], limits: dict[str, Any]) -> None:
    if limits:
        # What is not given stays as the hub has it.
        values["limits"] = msgspec.structs.replace(hub.settings.limits, **limits)
    try:
        hub.configure(**values)
    except (CrossbandError, ValueError, TypeError) as exc:
        _fail(str(exc), code=2)


def _run(
    served: ASGIApp,
    hub_settings: Settings,
    where: settings.Listen,
    title: str,
    *,
    generated_key: str | None = None,
    page: bool = False,
) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("crossband").setLevel(where.log_level.upper())
    server = Server(
        served,
        host=where.host,
        port=where.port,
        uds=where.uds,
        # uvicorn tells at "info" what the banner tells better, and at "debug" every
        # message, with the tokens and session keys inside.
        log_level=_SERVER_LEVELS.get(where.log_level, where.log_level),
        ssl_certfile=where.ssl_certfile,
        ssl_keyfile=where.ssl_keyfile,
        root_path=where.root_path,
        forwarded_allow_ips=where.forwarded_allow_ips,
        access_log=where.access_log,
    )
    try:
        server.run(
            lambda server: banner.show(
                server, hub_settings, title, generated_key=generated_key, page=page
            )
        )
    except StartError as exc:
        hint = f": --port {where.port + 1}" if "already in use" in str(exc) else ""
        _fail(f"{exc}{hint}")


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _fail(message: str, *, code: int = 1) -> NoReturn:
    _errors.print(Text.assemble(("error: ", "bold red"), message))
    raise typer.Exit(code)
