"""Settings of the command line: one table for options, environment variables and TOML.

The table is built from the structs, so a new field of Settings or Limits can be set in all
three ways at once; a test checks that it has a line of help.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args, get_origin

import msgspec
import typer

from crossband.auth.keys import check_algorithms
from crossband.broker.opening import check_url
from crossband.errors import CrossbandError
from crossband.limits import Limits
from crossband.settings import DOORS, KEEP_ALIVE, Settings

PREFIX: Final = "CROSSBAND_"
# Variables that commands read and that are not settings of the server.
_OTHER_VARIABLES: Final = frozenset(
    {"CROSSBAND_CONFIG", "CROSSBAND_API_KEY", "CROSSBAND_TOKEN", "CROSSBAND_WORKER"}
)


class SettingError(CrossbandError):
    """A setting is unusable; the message names its source and what was expected."""


# Settings that cannot be empty: an empty variable is a mistake, usually of a deployment that
# should have filled it in, and must not mean "none".
Text = Annotated[str, msgspec.Meta(min_length=1)]
Names = Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)]


class Listen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where and how the server listens, which the hub need not know."""

    host: Text = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 8000
    uds: Text | None = None
    # In octal.
    uds_mode: Annotated[str, msgspec.Meta(pattern=r"\A0?[0-7]{3}\Z")] = "666"
    ssl_certfile: Text | None = None
    ssl_keyfile: Text | None = None
    root_path: str = ""
    forwarded_allow_ips: Text | None = None
    keep_alive: float = KEEP_ALIVE
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "info"
    access_log: bool = False


class Processes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many processes serve, and what joins them."""

    workers: Annotated[int, msgspec.Meta(ge=1)] = 1
    broker: Text | None = None
    state: Text | None = None
    reload: bool = False

    def __post_init__(self) -> None:
        if self.broker is not None:
            try:
                check_url(self.broker)
            except ImportError as error:
                raise ValueError(str(error)) from None

    @property
    def supervised(self) -> bool:
        """Whether workers serve, kept by a parent, and not this process."""
        return self.workers > 1 or self.reload or self.state is not None


class Tokens(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may connect to the standalone hub: clients with a token, or anybody."""

    open: bool = False
    jwt_secret: Text | None = None
    jwt_key_file: Text | None = None
    jwks_url: Text | None = None
    jwt_algorithms: Names = ()
    jwt_audience: Names = ()
    jwt_issuer: Names = ()
    jwt_leeway: float = 0.0
    token_cookie: Text | None = None

    def __post_init__(self) -> None:
        check_algorithms(self.jwt_algorithms or None)

    @property
    def given(self) -> list[str]:
        """The names of the fields that are set."""
        fields = msgspec.structs.fields(self)
        return [each.name for each in fields if getattr(self, each.name) != each.default]


HELP: Final = {
    "host": "Address to listen on; 0.0.0.0 or :: for all.",
    "port": "Port to listen on; 0 takes a free one.",
    "uds": "Unix socket to listen on instead.",
    "uds_mode": "Permissions of the unix socket, in octal.",
    "ssl_certfile": "TLS certificate, a PEM file.",
    "ssl_keyfile": "Private key of the certificate, unless it is in the same file.",
    "root_path": "Path prefix that a proxy in front removes.",
    "keep_alive": "How long an HTTP connection may be idle; longer than a load balancer's.",
    "forwarded_allow_ips": "Proxies that uvicorn trusts, for the rest of an application.",
    "log_level": "Least severe level to log.",
    "access_log": "Log each HTTP request.",
    "workers": "Processes that serve, joined by the broker.",
    "broker": "URL of what joins processes: redis://, rediss://, unix://, and others.",
    "state": "Directory in which the private engine of the workers keeps its data.",
    "reload": "Start again when a Python file changes, for development.",
    "open": "Let in anybody, without a token.",
    "jwt_secret": "Secret to verify tokens with; better set in the environment.",
    "jwt_key_file": "File with the key to verify tokens with: PEM, JWK, or a secret.",
    "jwks_url": "URL of the keys to verify tokens with.",
    "jwt_algorithms": "Algorithms of tokens, if not the key's usual one.",
    "jwt_audience": "Audience that tokens must be for (claim aud).",
    "jwt_issuer": "Issuer that tokens must be from (claim iss).",
    "jwt_leeway": "How much the clock of the issuer may differ.",
    "token_cookie": "Cookie that may hold the token.",
    "ping_interval": "Interval between heartbeats.",
    "ping_timeout": "Wait for the answer to a heartbeat.",
    "keepalive_interval": "Interval between comments on an idle event stream.",
    "retry": "How long EventSource waits before it reconnects.",
    "history_size": "Events kept per namespace, and as many again sent to single clients.",
    "history_bytes": "Bytes of those events, and as many again sent to single clients.",
    "history_age": "How long events are kept, and sessions of clients that are away.",
    "presence": "Rooms that show who is in them; * matches any characters.",
    "presence_grace": "How long a client whose connection was cut stays a member of a room.",
    "answer_errors": "Tell Socket.IO clients why an event failed, in its acknowledgement.",
    "recovery": "Let Socket.IO clients resume (connection state recovery).",
    "cors_origins": "Origins of other sites that may connect; * for any.",
    "allowed_hosts": "Hosts that requests may be for, without port; any if not given.",
    "token_warning": "How long before its token expires to tell a client.",
    "trusted_proxies": "Proxies whose X-Forwarded headers to trust: addresses, networks, unix.",
    "api_keys": "Keys for the HTTP API.",
    "status": "Who may read /api/status: anybody, holders of an API key, nobody.",
    "socketio_path": "Path of the Socket.IO door; empty switches it off.",
    "websocket_path": "Path of the WebSocket door; empty switches it off.",
    "events_path": "Path of the Server-Sent Events door; empty switches it off.",
    "api_path": "Path of the HTTP API; empty switches it off.",
    "drain_time": "Time over which a stopping server closes its clients.",
    "shutdown_timeout": "How long a graceful stop may take.",
    "limits.message_size": "Largest WebSocket message or back-channel body, bytes.",
    "limits.max_http_buffer_size": "Largest Socket.IO message or polling body, bytes.",
    "limits.attachments": "Binary parts of one Socket.IO packet.",
    "limits.event_size": "Bytes of one Socket.IO event, its binary parts included.",
    "limits.packets_per_payload": "Packets in one polling body; 0 for any number.",
    "limits.fragments": "Frames of one WebSocket message.",
    "limits.message_rate": "Messages per second on one connection; 0 for any number.",
    "limits.user_message_rate": "Messages per second of one user; 0 for any number.",
    "limits.byte_rate": "Bytes per second on one connection, inflated; 0 for any number.",
    "limits.publish_rate": "Publishing requests per second with one key; 0 for any number.",
    "limits.burst_time": "How many seconds' worth of a rate may come at once.",
    "limits.flood_time": "How long a client that is too fast is slowed down before it is refused.",
    "limits.refusals": "Refused messages before the connection is closed.",
    "limits.connections": "Open connections in all; 0 for any number.",
    "limits.connections_per_address": "Open connections from one address; 0 for any number.",
    "limits.connections_per_user": "Open connections of one user; 0 for any number.",
    "limits.subscriptions": "Rooms one request may ask for.",
    "limits.head_time": "Time for a request's head.",
    "limits.body_time": "Time for a request's body.",
    "limits.send_time": "Time for a client to read some of a response.",
    "limits.rooms": "Rooms one client may be in, its own included.",
    "limits.namespaces": "Namespaces one Socket.IO connection may join.",
    "limits.pending_acks": "Acknowledgements awaited from one client.",
    "limits.inbox": "Received events that may wait before reading pauses.",
    "limits.inbox_size": "Bytes of received events that may wait before reading pauses.",
    "limits.outbox": "Bytes that may wait before a slow client is disconnected.",
    "limits.handshake_time": "Time from connecting to the first namespace, and for middlewares.",
}


def is_text(value: str) -> bool:
    """Return whether a value is UTF-8: Python reads other bytes as surrogates."""
    return not any("\ud800" <= char <= "\udfff" for char in value)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting and its three names."""

    # Its name in TOML; fields of Limits are "limits.rooms" and so on.
    key: str
    type: Any
    # The type as the struct declares it, with its bounds.
    declared: Any
    default: Any
    struct: type[msgspec.Struct]

    @property
    def parameter(self) -> str:
        return self.key.replace(".", "_")

    @property
    def variable(self) -> str:
        return PREFIX + self.parameter.upper()

    @property
    def option(self) -> str:
        return "--" + self.parameter.replace("_", "-")

    @property
    def is_rate(self) -> bool:
        return self.key.endswith("_rate")

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        if self.key == "port":
            return "a port, 0 to 65535"
        if self.key == "workers":
            return "a whole number, 1 or more"
        if self.key == "uds_mode":
            return "three octal digits, as a string, such as '660'"
        if self.is_rate:
            return "a number per second, 0 or more"
        if self.type is float:
            return "a number of seconds, 0 or more"
        if self.type is int:
            return "a whole number, 0 or more"
        if self.type is bool:
            return "true or false"
        if get_origin(self.type) is tuple:
            least = "" if self.type is self.declared else ", at least one"
            return f"a list of strings{least}"
        if get_origin(self.type) is Literal:
            return "one of " + ", ".join(get_args(self.type))
        empty = self.declared is str or self.key in DOORS
        return "a string" if empty else "a string that is not empty"

    def convert(self, value: object, source: str) -> Any:
        """Return the value in the setting's type. Raises SettingError."""
        problem = SettingError(f"{source}: expected {self.expected}, not {reprlib.repr(value)}")
        if isinstance(value, str):
            if not is_text(value):
                raise SettingError(f"{source}: it is not UTF-8")
            if get_origin(self.type) is tuple:
                value = value.split(",")
            elif self.type is bool:
                value = _WORDS.get(value.strip().lower(), value.strip())
        if get_origin(self.type) is tuple and isinstance(value, (list, tuple)):
            value = [item.strip() if isinstance(item, str) else item for item in value]
            value = [item for item in value if item != ""]
        try:
            converted = msgspec.convert(value, self.declared, strict=False)
        except msgspec.ValidationError:
            raise problem from None
        if self.type in (int, float) and not (math.isfinite(converted) and converted >= 0):
            raise problem
        # Whether paths of doors overlap can only be checked for all of them together.
        if self.key not in DOORS:
            try:
                # The struct checks the rest. Here, because here the source is known.
                self.struct(**{self.key.rpartition(".")[2]: converted})
            except ValueError as exc:
                raise SettingError(f"{source}: {str(exc).removeprefix(f'{self.key} ')}") from exc
        return converted


_WORDS: Final = {"yes": True, "on": True, "no": False, "off": False, "": None}


def _settings_of(struct: type[msgspec.Struct], prefix: str = "") -> Iterable[Setting]:
    for field in msgspec.structs.fields(struct):
        if field.type is not Limits:
            kind = field.type
            if get_origin(kind) is Annotated:
                kind = get_args(kind)[0]
            yield Setting(prefix + field.name, kind, field.type, field.default, struct)


SETTINGS: Final = (
    *_settings_of(Listen),
    *_settings_of(Processes),
    *_settings_of(Tokens),
    *_settings_of(Settings),
    *_settings_of(Limits, "limits."),
)
_BY_KEY: Final = {setting.key: setting for setting in SETTINGS}


def read(
    options: Mapping[str, Any], environ: Mapping[str, str], file: Path | None
) -> dict[str, Any]:
    """Collect the given settings by key; options win, then the environment.

    Raises SettingError for the first unusable one.
    """
    values = {} if file is None else _read_toml(file)
    for setting in SETTINGS:
        given = environ.get(setting.variable)
        # Kubernetes sets CROSSBAND_PORT=tcp://… for a Service named "crossband".
        if given is not None and not (setting.key == "port" and given.startswith("tcp://")):
            values[setting.key] = setting.convert(given, setting.variable)
        option = options.get(setting.parameter)
        if option is not None and option != []:
            if get_origin(setting.type) is tuple:
                option = ",".join(option)
            values[setting.key] = setting.convert(option, setting.option)
    return values


def misspelt(environ: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable whose name is nearly one of ours."""
    known = {setting.variable for setting in SETTINGS} | _OTHER_VARIABLES
    warnings = []
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.9)
            if near:
                warnings.append(f"{name} is not a setting; did you mean {near[0]}?")
    return warnings


@dataclass(frozen=True, slots=True)
class Given:
    """The settings that are given, by whom they concern."""

    listen: Listen
    processes: Processes
    tokens: Tokens
    hub: dict[str, Any]
    # Of the hub.
    limits: dict[str, Any]


def split(values: Mapping[str, Any]) -> Given:
    """Split settings by whom they concern."""
    names = {name for struct in (Listen, Processes, Tokens) for name in struct.__struct_fields__}
    limits = {
        key.removeprefix("limits."): value
        for key, value in values.items()
        if key.startswith("limits.")
    }
    hub = {
        key: value
        for key, value in values.items()
        if key not in names and not key.startswith("limits.")
    }
    return Given(
        _pick(Listen, values), _pick(Processes, values), _pick(Tokens, values), hub, limits
    )


S = TypeVar("S", bound=msgspec.Struct)


def _pick(struct: type[S], values: Mapping[str, Any]) -> S:
    return struct(**{name: values[name] for name in struct.__struct_fields__ if name in values})


def _read_toml(file: Path) -> dict[str, Any]:
    import tomllib

    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise SettingError(f"cannot read {file}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingError(f"{file} is not TOML: {exc}") from exc
    limits = table.pop("limits", {})
    if not isinstance(limits, dict):
        raise SettingError(f"{file}: expected a table [limits], not {limits!r}")
    table.update({f"limits.{key}": value for key, value in limits.items()})
    values = {}
    for key, value in table.items():
        setting = _BY_KEY.get(key)
        if setting is None:
            raise SettingError(f"{file}: unknown key {key!r}{_suggest(key)}")
        values[key] = setting.convert(value, f"{file}: {key}")
    return values


def _suggest(key: str) -> str:
    # "rooms" at the top level belongs to [limits].
    if f"limits.{key}" in _BY_KEY:
        return "; it belongs in the table [limits]"
    near = difflib.get_close_matches(key, _BY_KEY, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


Command = Callable[..., None]


def with_settings(command: Command) -> Command:
    """Give a command an option for each setting, passed on in its `**options`.

    Every option is a string, or None if absent, so that a bad value gets the same message from
    whatever source.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    generated = [
        inspect.Parameter(
            setting.parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
        )
        for setting, annotation in ((setting, _option(setting)) for setting in SETTINGS)
    ]

    @functools.wraps(command)
    def wrapper(**parameters: Any) -> None:
        command(**parameters)

    wrapper.__signature__ = signature.replace(parameters=[*own, *generated])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {each.name: each.annotation for each in [*own, *generated]}
    return wrapper


def _option(setting: Setting) -> Any:
    name = setting.option
    kind: Any = str
    metavar: str | None = "TEXT"
    if setting.type is bool:
        kind, metavar = bool, None
        name = f"{name}/--no-{name.removeprefix('--')}"
    elif get_origin(setting.type) is tuple:
        kind, metavar = list[str], "A,B"
    elif get_origin(setting.type) is Literal:
        metavar = "|".join(get_args(setting.type))
    elif setting.type is float:
        metavar = "NUMBER" if setting.is_rate else "SECONDS"
    elif setting.type is int:
        metavar = "NUMBER"
    elif setting.key == "uds_mode":
        metavar = "OCTAL"
    elif setting.key in ("uds", "ssl_certfile", "ssl_keyfile", "jwt_key_file"):
        metavar = "FILE"
    elif setting.key in ("broker", "state"):
        metavar = {"broker": "URL", "state": "DIRECTORY"}[setting.key]
    return Annotated[
        kind | None,
        typer.Option(
            name,
            help=f"{HELP.get(setting.key, '')}{_default(setting)}",
            metavar=metavar,
            show_default=False,
        ),
    ]


def _default(setting: Setting) -> str:
    if setting.default in (None, "", ()):
        return ""
    if setting.type is bool:
        return f" (default: {'on' if setting.default else 'off'})"
    value = f"{setting.default:.15g}" if setting.type is float else setting.default
    return f" (default: {value})"
