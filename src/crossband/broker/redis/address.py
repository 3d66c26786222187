"""Addresses of Redis and Valkey: URLs, and what to say to a server that one connects to."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

PORT: Final = 6379
SENTINEL_PORT: Final = 26379
PREFIX: Final = "crossband"

_KINDS: Final[Mapping[str, tuple[Literal["one", "sentinel", "cluster"], bool]]] = {
    "redis": ("one", False),
    "rediss": ("one", True),
    "valkey": ("one", False),
    "valkeys": ("one", True),
    "unix": ("one", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
SCHEMES: Final = tuple(_KINDS)

# Options of the URL's query. Those of TLS are named as in redis-py.
_OPTIONS: Final = (
    "prefix",
    "db",
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_check_hostname",
    "ssl_cert_reqs",
    "sentinel_username",
    "sentinel_password",
)


@dataclass(frozen=True, slots=True)
class Login:
    """What a server wants to know before it obeys."""

    # None: the server has no users, or one named "default".
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server listens: a host and a port, or a Unix socket."""

    host: str = ""
    port: int = PORT
    path: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Address:
    """What a broker's URL says."""

    kind: Literal["one", "sentinel", "cluster"]
    # Of a cluster or of Sentinels, some.
    places: tuple[Place, ...]
    login: Login = Login()
    # Of the Sentinels themselves.
    sentinel_login: Login = Login()
    # What the Sentinels call the primary.
    service: str = ""
    # None: without TLS.
    tls: ssl.SSLContext | None = None
    # All keys and channels begin with it.
    prefix: str = PREFIX

    def __str__(self) -> str:
        places = ", ".join(map(str, self.places))
        return f"{self.service} of {places}" if self.service else places


def is_address(url: str) -> bool:
    """Return whether a URL is one of Redis or Valkey, right or wrong."""
    return url.partition(":")[0].lower() in _KINDS


def parse(url: str) -> Address:
    """Read a broker's URL. Raises ValueError that says what is wrong, without the password."""
    scheme, _, _ = url.partition("://")
    scheme = scheme.lower()
    if "://" not in url or scheme not in _KINDS:
        raise ValueError(f"a broker's URL starts with one of {', '.join(SCHEMES)}, and '://'")
    kind, secure = _KINDS[scheme]
    # urlsplit reads one host; there may be several, separated by commas.
    parts = urlsplit(url)
    if parts.fragment:
        raise ValueError("a broker's URL has no fragment: write '#' in a password as '%23'")
    options = _options(parts.query)
    user, at, hosts = parts.netloc.rpartition("@")
    login = _login(user) if at else Login()
    path = unquote(parts.path)
    service = ""
    if scheme == "unix":
        if hosts or not path or path == "/":
            raise ValueError("the URL of a Unix socket has three slashes: unix:///path/to/socket")
        places: tuple[Place, ...] = (Place(path=path),)
        database = options.pop("db", "0")
    else:
        places = tuple(
            _place(host, SENTINEL_PORT if kind == "sentinel" else PORT)
            for host in (hosts or "localhost").split(",")
        )
        segments = [segment for segment in path.split("/") if segment]
        if kind == "sentinel":
            if not segments:
                raise ValueError(
                    "the URL of Sentinels ends in the primary's name: "
                    "redis+sentinel://host,host/mymaster"
                )
            service = segments.pop(0)
        elif kind == "one" and len(places) > 1:
            raise ValueError(
                "several hosts are 'redis+sentinel://host,host/name' or 'redis+cluster://host,host'"
            )
        database = segments.pop(0) if segments else options.pop("db", "0")
        options.pop("db", None)
        if segments:
            raise ValueError(f"a broker's URL has nothing behind the database: {segments[0]!r}")
    if not (database.isascii() and database.isdigit() and len(database) < 6):
        raise ValueError(f"the database is a number, not {database!r}")
    if kind == "cluster" and int(database):
        raise ValueError("a cluster has the database 0 only")
    prefix = options.pop("prefix", PREFIX)
    if not prefix or not prefix.isprintable() or set(prefix) & set("{} "):
        raise ValueError("the prefix of keys has no braces, spaces or control characters")
    sentinel = Login(options.pop("sentinel_username", None), options.pop("sentinel_password", None))
    return Address(
        kind,
        places,
        replace(login, database=int(database)),
        sentinel,
        service,
        _tls(options, secure),
        prefix,
    )


def _options(query: str) -> dict[str, str]:
    options = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS:
            raise ValueError(f"a broker's URL has no option {name!r}; it has {', '.join(_OPTIONS)}")
        options[name] = value
    return options


def _login(text: str) -> Login:
    user, _, password = text.partition(":")
    # `redis://secret@host` is a common slip: redis-cli takes that for a user.
    if user and not password:
        raise ValueError(
            "the URL has a user without a password: write ':password@' or 'user:password@'"
        )
    return Login(unquote(user) or None, unquote(password) or None)


def _place(text: str, port: int) -> Place:
    try:
        parts = urlsplit(f"//{text}")
        host, number = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"{text!r} is not a host and a port") from None
    if not host:
        raise ValueError(f"{text!r} has no host")
    return Place(host, port if number is None else number)


def _tls(options: dict[str, str], secure: bool) -> ssl.SSLContext | None:
    if not secure:
        if options and (name := next(iter(options))).startswith("ssl_"):
            raise ValueError(f"{name} is for TLS: the URL would start with 'rediss'")
        return None
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"the certificates of the broker's URL cannot be read: {error}") from None
    required = options.get("ssl_cert_reqs", "required")
    if required not in ("required", "none"):
        raise ValueError(f"ssl_cert_reqs is 'required' or 'none', not {required!r}")
    if required == "none" or options.get("ssl_check_hostname", "").lower() in ("false", "no", "0"):
        context.check_hostname = False
    if required == "none":
        context.verify_mode = ssl.CERT_NONE
    return context
