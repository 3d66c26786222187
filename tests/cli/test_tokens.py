"""Tokens on the command line: who the standalone hub lets in, and `crossband token`."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from crossband import JWTAuth
from crossband.cli.settings import Listen, SettingError, Tokens
from crossband.cli.tokens import is_local, lifetime, standalone_auth
from crossband.standalone import create_hub
from tests.cli.test_commands import Run, invoke, run
from tests.clients import EventFailed, NewClient, Refused
from tests.conftest import Serve

__all__ = ["run"]

SECRET = "a secret of thirty-two bytes, or more"
ENVIRON: dict[str, str | None] = {"CROSSBAND_JWT_SECRET": SECRET}


def claims_of(shown: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(shown, options={"verify_signature": False})
    return claims


def made(*arguments: str, env: dict[str, str | None] | None = None) -> str:
    result = invoke("token", *arguments, env=env)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


# crossband token.


def test_token_says_what_was_asked_for() -> None:
    shown = made(
        *("--user", "alice", "--rooms", "news, team-*", "--rooms", "board", "--expires", "15m"),
        *("--audience", "chat", "--issuer", "me", "--claim", "role=admin", "--claim", "age=7"),
        *("--secret", SECRET),
    )
    claims = claims_of(shown)
    assert abs(claims.pop("exp") - time.time() - 900) < 60
    assert abs(claims.pop("iat") - time.time()) < 60
    assert claims == {
        "sub": "alice",
        "rooms": ["news", "team-*", "board"],
        "aud": "chat",
        "iss": "me",
        "role": "admin",
        "age": 7,
    }


def test_token_takes_the_servers_settings(tmp_path: Path) -> None:
    file = tmp_path / "crossband.toml"
    file.write_text('jwt_audience = ["chat", "board"]\njwt_algorithms = ["HS512"]\n')
    secret = SECRET * 2
    shown = made(
        *("--user", "alice", "--subscribe", "*", "--publish", "news", "--config", str(file)),
        env={"CROSSBAND_JWT_SECRET": secret, "CROSSBAND_JWT_ISSUER": "me"},
    )
    assert jwt.get_unverified_header(shown)["alg"] == "HS512"
    claims = claims_of(shown)
    assert (claims["aud"], claims["iss"]) == ("chat", "me")
    assert claims["rooms"] == {"subscribe": ["*"], "publish": ["news"]}


async def test_token_is_signed_with_a_key_file(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    private, public, shape = (tmp_path / name for name in ("private.pem", "public.pem", "key.json"))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    shape.write_text(json.dumps({**ECAlgorithm.to_jwk(key, True), "kid": "one"}))
    auth = JWTAuth(public.read_text())
    for file in (private, shape):
        # The environment's secret steps back.
        arguments = ("--user", "alice", "--key-file", str(file))
        shown = await asyncio.to_thread(made, *arguments, env=ENVIRON)
        assert (await auth.verify(shown)).user == "alice"
    assert jwt.get_unverified_header(shown)["kid"] == "one"
    result = invoke("token", "--user", "alice", "--key-file", str(public))
    assert result.exit_code == 2
    assert "this is a public key" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no signing key: pass"),
        (["--secret", "short"], "--secret: the secret has 5 bytes"),
        (["--secret", SECRET, "--algorithm", "RS256"], "RS256 cannot be used with a secret"),
        (["--secret", SECRET, "--algorithm", "none"], "'none' is not one of"),
        (["--secret", SECRET, "--key-file", "k"], "give only one of them to sign with"),
        (["--secret", SECRET, "--expires", "soon"], "expected a time such as 90, 15m"),
        (["--secret", SECRET, "--expires", "0"], "valid for at least a second, not '0'"),
        (["--secret", SECRET, "--algorithm", "bogus"], "'--algorithm': 'bogus' is not one of"),
        (["--secret", ""], "'--secret': it is empty"),
        (["--secret", SECRET, "--user", ""], "'--user': it is empty"),
        (["--key-file", __file__], "neither PEM nor a JWK, nor a secret, which is one line"),
        (["--secret", SECRET, "--claim", "role"], "expected NAME=VALUE, not 'role'"),
        (["--secret", SECRET, "--rooms", "a", "--publish", "b"], "--rooms covers both"),
        (["--key-file", "/no/such"], "cannot read /no/such: No such file"),
    ],
)
def test_token_that_cannot_be_made_is_told(arguments: list[str], message: str) -> None:
    result = invoke("token", "--user", "alice", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_token_that_its_server_refuses_is_warned_of() -> None:
    result = invoke("token", "--user", "alice", "--secret", SECRET, "--claim", 'rooms="news"')
    assert result.exit_code == 0
    assert claims_of(result.stdout.strip())["rooms"] == "news"
    assert "warning: a server with these settings refuses this token: A claim" in result.stderr
    result = invoke("token", "--user", "alice", "--secret", SECRET)
    assert result.stderr == ""


def test_lifetime() -> None:
    assert [lifetime(text) for text in ("90", "90s", "1.5m", "2h", "7d")] == [
        90,
        90,
        90,
        7_200,
        604_800,
    ]
    for text in ("", "-1", "1w", "h", "1e9", "9" * 20):
        with pytest.raises(SettingError):
            lifetime(text)


# The standalone hub.


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_address_of_this_machine_alone_needs_no_tokens(host: str) -> None:
    assert standalone_auth(Tokens(), Listen(host=host)) == {}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "example.com"])
def test_other_address_needs_tokens_or_an_order(host: str) -> None:
    assert not is_local(Listen(host=host))
    with pytest.raises(SettingError, match="--open to let in anybody"):
        standalone_auth(Tokens(), Listen(host=host))
    assert standalone_auth(Tokens(open=True), Listen(host=host)) == {}
    assert standalone_auth(Tokens(), Listen(host=host, uds="/run/crossband.sock")) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "anybody could connect to 0.0.0.0: give --jwt-secret"),
        (["--open", "--jwt-secret", SECRET], "--open lets in anybody, and --jwt-secret is about"),
        (
            ["--jwt-secret", SECRET, "--jwks-url", "https://example.com"],
            "only one of them can verify tokens",
        ),
        (["--jwt-secret", "short"], "--jwt-secret: the secret has 5 bytes"),
        (["--jwt-key-file", "/no/such"], "--jwt-key-file: cannot read /no/such"),
        (["--jwks-url", "keys"], "a JWKS URL looks like https://"),
        (["--jwt-secret", SECRET, "--jwt-algorithms", "ES256"], "ES256 cannot be used"),
        (["--open", "--token-cookie", "c"], "--open lets in anybody, and --token-cookie is about"),
        (["--jwt-secret", ""], "--jwt-secret: expected a string that is not empty, not ''"),
        (["--jwt-audience", "chat"], "--jwt-audience is about tokens, and there is no key"),
        (["--token-cookie", "c"], "--token-cookie is about tokens, and there is no key"),
        (["my_hub:hub", "--jwt-secret", SECRET], "my_hub:hub does not ask for tokens: jwt_secret"),
        (["my_hub:hub", "--jwt-audience", "a"], "does not ask for tokens: jwt_audience is a"),
        (["my_hub:hub", "--open"], "my_hub:hub has no authenticate, and lets in anybody"),
        (["my_hub:auth", "--token-cookie", "c"], "my_hub:auth has an authenticate of its own"),
        (["my_hub:auth", "--open"], "open is a setting of the standalone hub"),
    ],
)
def test_settings_of_tokens_that_make_no_sense_are_told(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "my_hub.py").write_text(
        "from crossband import Hub\nhub = Hub()\nauth = Hub(authenticate=lambda handshake: None)\n"
    )
    result = invoke("serve", *arguments, "--app-dir", str(tmp_path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert SECRET not in result.stderr


def test_open_hub_says_so(run: Run) -> None:
    command = run("serve", "--port", "0", "--open", "--host", "0.0.0.0", terminal=True)
    url = command.started()
    assert "Anybody who reaches it may connect" in command.banner
    assert httpx.head(f"{url}/events", verify=False).status_code == 200
    _, _, errors = command.end()
    assert "warning: --open: whoever reaches this server may connect" in errors


def test_own_hub_may_share_the_key_of_the_environment(run: Run, tmp_path: Path) -> None:
    (tmp_path / "members.py").write_text(
        "import os\nfrom crossband import Hub, JWTAuth\n"
        "hub = Hub(authenticate=JWTAuth(os.environ['CROSSBAND_JWT_SECRET']))\n"
    )
    env = {"CROSSBAND_JWT_SECRET": SECRET}
    url = run("serve", "members:hub", "--port", "0", **env).started()
    shown = made("--user", "alice", env={**env})
    assert httpx.head(f"{url}/events?token={shown}", verify=False).status_code == 200


def test_banner_says_how_to_get_a_token(run: Run, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "public.pem").write_bytes(public)
    (tmp_path / "my settings.toml").write_text(f"jwt_secret = '{SECRET}'")
    for arguments, said in (
        (("--jwt-key-file", "public.pem"), "the private key that belongs to public.pem"),
        (("--jwks-url", "https://id.example/keys"), "with a key of https://id.example/keys"),
        (("--jwt-secret", SECRET, "--jwt-audience", "chat"), "--secret … --audience chat"),
        (("--config", "my settings.toml"), "--rooms '*' --config 'my settings.toml'"),
    ):
        command = run("serve", "--port", "0", *arguments, terminal=True)
        command.started()
        assert said in command.banner
        assert SECRET not in command.banner


def test_served_hub_takes_the_tokens_that_are_made_for_it(run: Run) -> None:
    env = {"CROSSBAND_JWT_SECRET": SECRET, "CROSSBAND_JWT_AUDIENCE": "chat"}
    command = run("serve", "--port", "0", "--access-log", terminal=True, **env)
    url = command.started()
    assert "crossband token --user NAME" in command.banner
    assert httpx.head(f"{url}/events", verify=False).status_code == 401
    shown = made("--user", "alice", "--rooms", "news", env={**env})
    assert httpx.head(f"{url}/events?token={shown}", verify=False).status_code == 200
    for room, code, said in (
        ("news", 0, "published to 0 clients"),
        ("board", 1, "Not allowed to publish to the room 'board'"),
    ):
        result = invoke("publish", url, "news", "1", "--room", room, "--token", shown)
        assert result.exit_code == code
        assert said in result.output
    result = invoke("publish", url, "news")
    assert "the server requires an API key (--api-key) or a token (--token)" in result.stderr
    for address in (url, f"ws{url[4:]}/ws", f"{url}/socket.io/"):
        result = invoke("listen", address, "--token", "made up")
        assert result.exit_code == 1
        assert result.stderr.endswith(
            ": The token cannot be read (code: unauthorized, reason: malformed)\n"
        )
    listening = run("listen", url, "--room", "news", "--count", "1", CROSSBAND_TOKEN=shown)
    assert "connected to" in listening.stderr.readline()
    invoke("publish", url, "news", "7", "--room", "news", "--token", shown)
    assert " 7 " in listening.stdout.readline()
    _, out, errors = command.end()
    assert shown not in out + errors
    assert "GET /events" in out + errors or "HEAD /events" in out + errors


@pytest.mark.parametrize("kind", ["websocket", "sse"])
async def test_standalone_hub_obeys_the_rooms_claim(
    kind: str, serve: Serve, new_client: NewClient
) -> None:
    auth = standalone_auth(Tokens(jwt_secret=SECRET), Listen())
    server = await serve(create_hub(**auth))

    def token(rooms: Any) -> dict[str, str]:
        claims = {"sub": "alice", "exp": time.time() + 60, "rooms": rooms}
        return {"token": jwt.encode(claims, SECRET)}

    alice, reader = new_client(kind), new_client(kind)
    await alice.connect(server.url, auth=token(["news", "team-*"]))
    await reader.connect(
        server.url, auth=token({"subscribe": ["*"], "publish": []}), rooms=["news"]
    )
    assert (await alice.call("room:join", "news"))["members"] == 2
    await alice.call("room:message", {"room": "news", "data": 7})
    said = (await reader.next_event("room:message")).data
    assert said == {"from": alice.sid, "user": "alice", "room": "news", "data": 7}
    # Its own room is its own.
    await alice.call("room:message", {"room": alice.sid, "data": 1})
    for client, event, data, room in (
        (alice, "room:join", "board", "board"),
        (alice, "chat:message", {"content": "hello"}, None),
        (reader, "room:message", {"room": "news", "data": 1}, "news"),
        (reader, "chat:message", {"content": "hello", "room": "news"}, "news"),
    ):
        with pytest.raises(EventFailed) as failure:
            await client.call(event, data)
        assert failure.value.code == "forbidden"
        assert failure.value.error["room"] == room
    with pytest.raises(Refused):
        await new_client(kind).connect(server.url)
