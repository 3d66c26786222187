"""Tokens on the command line: the standalone hub's authentication, `crossband token`."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from shlex import quote
from typing import Any, Final

import msgspec

from crossband.auth import rooms_claim
from crossband.auth.jwt import JWTAuth, sign_token
from crossband.auth.keys import KeySource, signing_key
from crossband.cli.settings import Listen, SettingError, Tokens
from crossband.errors import Unauthorized
from crossband.invocation import program

# Seconds that a token is valid by default: an hour, to try things out.
LIFETIME: Final = 3_600.0
# Names in `crossband token` of what are other options of the server.
_TOKEN_OPTIONS: Final = {
    "jwt_key_file": "--key-file",
    "jwt_algorithms": "--algorithm",
    "jwt_audience": "--audience",
    "jwt_issuer": "--issuer",
}
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


def standalone_auth(tokens: Tokens, where: Listen) -> dict[str, Any]:
    """Return `authenticate` and `authorize` for the standalone hub.

    Empty if anybody may connect: with `open`, or on an address that only this machine reaches.
    Raises SettingError.
    """
    sources = {
        "--jwt-secret": tokens.jwt_secret,
        "--jwt-key-file": tokens.jwt_key_file,
        "--jwks-url": tokens.jwks_url,
    }
    given = [option for option, value in sources.items() if value]
    others = [_option(name) for name in tokens.given if _option(name) not in (*sources, "--open")]
    if tokens.open and (given or others):
        raise SettingError(
            f"--open lets in anybody, and {(given or others)[0]} is about tokens: give one of them"
        )
    if len(given) > 1:
        raise SettingError(f"{' and '.join(given)} are given; only one of them can verify tokens")
    if not given:
        if others:
            raise SettingError(
                f"{others[0]} is about tokens, and there is no key to verify them with: give "
                "--jwt-secret, --jwt-key-file or --jwks-url as well"
            )
        check_open(
            tokens.open, where, "--jwt-secret, --jwt-key-file or --jwks-url to require tokens, or "
        )
        return {}
    key: KeySource | None = tokens.jwt_secret or None
    if tokens.jwt_key_file:
        key = read_key(tokens.jwt_key_file, "--jwt-key-file")
    try:
        auth = JWTAuth(
            key,
            jwks_url=tokens.jwks_url or None,
            algorithms=tokens.jwt_algorithms or None,
            audience=tokens.jwt_audience or None,
            issuer=tokens.jwt_issuer or None,
            leeway=tokens.jwt_leeway,
            cookie=tokens.token_cookie or None,
        )
    except ValueError as exc:
        raise SettingError(f"{given[0]}: {exc}") from exc
    return {"authenticate": auth, "authorize": rooms_claim}


def check_open(is_open: bool, where: Listen, otherwise: str = "") -> None:
    """Raise SettingError if anybody could connect from elsewhere without `--open`.

    `otherwise` names the alternatives to `--open`.
    """
    if not is_open and not is_local(where):
        raise SettingError(
            f"anybody could connect to {where.host}: give {otherwise}--open to let in anybody who "
            "reaches it"
        )


def check_own_hub(tokens: Tokens, options: Mapping[str, Any], target: str, *, asks: bool) -> None:
    """Raise SettingError for settings that only the standalone hub obeys.

    `asks` says whether the hub authenticates clients itself. Then its key may well be in the
    environment or the file, for `crossband token`; as an option it is a mistake.
    """
    ignored = [name for name in tokens.given if not asks or options.get(name) not in (None, [])]
    if not ignored:
        return
    one = len(ignored) == 1
    those = f"{' and '.join(ignored)} {'is a setting' if one else 'are settings'}"
    if asks:
        raise SettingError(
            f"{those} of the standalone hub; {target} has an authenticate of its own"
        )
    if ignored == ["open"]:
        raise SettingError(
            f"{those} of the standalone hub; {target} has no authenticate, and lets in anybody"
        )
    raise SettingError(
        f"{target} does not ask for tokens: {those} of the standalone hub. Give your own "
        "Hub(authenticate=JWTAuth(…))"
    )


def note(tokens: Tokens, options: Mapping[str, Any], config: Path | None) -> str:
    """Return how to get a token for the standalone hub, to print below the addresses."""
    if tokens.jwks_url:
        return f"Clients need a token, signed with a key of {tokens.jwks_url}"
    if tokens.jwt_key_file:
        try:
            signing_key(read_key(tokens.jwt_key_file, "--jwt-key-file"), None)
        except ValueError:
            return (
                "Clients need a token, signed with the private key that belongs to "
                f"{tokens.jwt_key_file}"
            )
    command = f"{program()} token --user NAME --rooms '*'"
    # That command reads the same environment.
    if config is not None:
        command += f" --config {quote(str(config))}"
    if options.get("jwt_secret") is not None:
        command += " --secret …"
    for name, option in _TOKEN_OPTIONS.items():
        if options.get(name):
            value = getattr(tokens, name)
            command += f" {option} {quote(value if isinstance(value, str) else value[0])}"
    return f"Clients need a token; to make one: {command}"


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def is_local(where: Listen) -> bool:
    """Return whether only this machine can reach an address."""
    if where.uds is not None:
        return True
    try:
        return ip_address(where.host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return where.host == "localhost"


def own_hosts(where: Listen) -> tuple[str, ...]:
    """Return this machine's names for a local address; () for a unix socket.

    For a hub that does not ask for tokens because only this machine reaches it: a page of any
    site could reach it too, through a name of its own that resolves to here (DNS rebinding).
    """
    if where.uds is not None:
        return ()
    names = ["localhost", "127.0.0.1", "::1"]
    with contextlib.suppress(ValueError):
        names.append(str(ip_address(where.host.removeprefix("[").removesuffix("]"))))
    return tuple(dict.fromkeys(names))


def read_key(name: str, option: str) -> KeySource:
    """Read a key file: PEM, JWK, JWK set or a one-line secret. Raises SettingError."""
    try:
        text = Path(name).read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise SettingError(f"{option}: cannot read {name}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise SettingError(f"{option}: {name} is neither PEM nor JSON nor text") from exc
    if not text:
        raise SettingError(f"{option}: {name} is empty")
    if text.startswith("-----BEGIN"):
        return text
    if not text.startswith("{"):
        if not text.isprintable():
            raise SettingError(
                f"{option}: {name} is neither PEM nor a JWK, nor a secret, which is one line "
                "(openssl rand -hex 32)"
            )
        return text
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as exc:
        raise SettingError(f"{option}: {name} is not a JWK: {exc}") from exc


def lifetime(text: str) -> float:
    """Return the seconds of `90`, `15m`, `1h` or `7d`. Raises SettingError."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None:
        raise SettingError(f"--expires: expected a time such as 90, 15m, 1h or 7d, not {text!r}")
    seconds = float(match[1]) * _UNITS[match[2]]
    if seconds < 1:
        raise SettingError(f"--expires: a token must be valid for at least a second, not {text!r}")
    return seconds


def claim(text: str) -> tuple[str, Any]:
    """Return the name and value of `name=value`, JSON or text. Raises SettingError."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise SettingError(f"--claim: expected NAME=VALUE, not {text!r}")
    try:
        return name, msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return name, value


def make(
    tokens: Tokens,
    *,
    user: str,
    seconds: float,
    rooms: list[str],
    subscribe: list[str],
    publish: list[str],
    claims: Mapping[str, Any],
    kid: str | None,
) -> str:
    """Return a token that a hub with these settings accepts. Raises SettingError."""
    if tokens.jwt_secret and tokens.jwt_key_file:
        raise SettingError("--secret and --key-file: give only one of them to sign with")
    source: KeySource
    if tokens.jwt_key_file:
        source, option = read_key(tokens.jwt_key_file, "--key-file"), "--key-file"
    elif tokens.jwt_secret:
        source, option = tokens.jwt_secret, "--secret"
    else:
        raise SettingError(
            "no signing key: pass the server's secret with --secret (or CROSSBAND_JWT_SECRET), or "
            "the private key with --key-file. To make a secret: openssl rand -hex 32"
        )
    if rooms and (subscribe or publish):
        raise SettingError("--rooms covers both: give it, or --subscribe and --publish")
    now = time.time()
    said: dict[str, Any] = {"sub": user, "iat": int(now), "exp": int(now + seconds)}
    if rooms:
        said["rooms"] = rooms
    elif subscribe or publish:
        said["rooms"] = {"subscribe": subscribe, "publish": publish}
    # A server accepts a token for one of its audiences.
    for name, values in (("aud", tokens.jwt_audience), ("iss", tokens.jwt_issuer)):
        if values:
            said[name] = values[0]
    algorithm = tokens.jwt_algorithms[0] if tokens.jwt_algorithms else None
    try:
        return sign_token({**said, **claims}, source, algorithm=algorithm, kid=kid)
    except ValueError as exc:
        raise SettingError(f"{option}: {exc}") from exc


def refusal(token: str, tokens: Tokens) -> str | None:
    """Return why a server with these settings would refuse the token, or None."""
    source = tokens.jwt_secret or read_key(tokens.jwt_key_file or "", "--key-file")
    auth = JWTAuth(
        source,
        algorithms=tokens.jwt_algorithms or None,
        audience=tokens.jwt_audience or None,
        issuer=tokens.jwt_issuer or None,
    )
    try:
        asyncio.run(auth.verify(token))
    except Unauthorized as exc:
        return str(exc)
    return None
