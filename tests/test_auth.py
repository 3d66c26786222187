"""Tokens, keys, rights and redaction, without a server; key sets from a real one."""

from __future__ import annotations

import asyncio
import base64
import enum
import gzip
import hashlib
import hmac
import json
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from crossband import ConnectionRefused, Handshake, Hub, Identity, JWTAuth, Rights, Unauthorized
from crossband.auth import MAX_TOKEN, bearer_token, keys, matches, redaction
from crossband.server import Server

SECRET = "a secret of thirty-two bytes, or more"
RSA_KEY = rsa.generate_private_key(65_537, 2_048)
SECRET_64 = SECRET * 2
# By algorithm: what signs, and what verifies by default.
SIGNERS: dict[str, Any] = {
    "HS256": SECRET,
    "HS384": SECRET_64,
    "HS512": SECRET_64,
    "RS256": RSA_KEY,
    "PS512": RSA_KEY,
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def public_pem(private: Any) -> str:
    text: bytes = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return text.decode()


def public_der(private: Any) -> bytes:
    text: bytes = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return text


def public_ssh(private: Any) -> bytes:
    text: bytes = private.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return text


def private_pem(private: Any) -> str:
    text: bytes = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return text.decode()


def jwk(private: Any, algorithm: str, **fields: Any) -> dict[str, Any]:
    """Return the public half as a JWK."""
    shape = jwt.get_algorithm_by_name(algorithm).to_jwk(private.public_key(), as_dict=True)
    return {**shape, **fields}


def token(
    claims: Mapping[str, Any] | None = None,
    *,
    algorithm: str = "HS256",
    key: Any = None,
    headers: Mapping[str, Any] | None = None,
) -> str:
    """Sign a token of alice's that expires in a minute; a claim of None is left out."""
    now = int(time.time())
    said = {"sub": "alice", "exp": now + 60, "iat": now, **(claims or {})}
    return jwt.encode(
        {name: value for name, value in said.items() if value is not None},
        SIGNERS[algorithm] if key is None else key,
        algorithm=algorithm,
        headers=dict(headers or {}),
    )


def b64(data: bytes | dict[str, Any]) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(header: dict[str, Any], claims: dict[str, Any], secret: bytes) -> str:
    """Sign by hand what no library would."""
    text = f"{b64(header)}.{b64(claims)}"
    return f"{text}.{b64(hmac.digest(secret, text.encode(), hashlib.sha256))}"


def claims_now(**more: Any) -> dict[str, Any]:
    return {"sub": "alice", "exp": int(time.time()) + 60, **more}


async def reason(auth: JWTAuth, shown: str) -> str:
    with pytest.raises(Unauthorized) as refusal:
        await auth.verify(shown)
    assert shown not in str(refusal.value)
    return refusal.value.reason


def shaken(
    *,
    query: Mapping[str, list[str]] | None = None,
    auth: Mapping[str, Any] | None = None,
    **headers: str,
) -> Handshake:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return Handshake("websocket", fields, query or {}, "127.0.0.1", 0.0, auth=auth or {})


# Keys.


@pytest.mark.parametrize("algorithm", SIGNERS)
async def test_token_of_each_algorithm_is_verified(algorithm: str) -> None:
    signer = SIGNERS[algorithm]
    key = signer if isinstance(signer, str) else public_pem(signer)
    auth = JWTAuth(key, algorithms=[algorithm])
    identity = await auth.verify(token({"role": "admin"}, algorithm=algorithm))
    assert identity.user == "alice"
    assert identity.claims["role"] == "admin"
    assert identity.expires == identity.claims["exp"]
    assert identity.issued == identity.claims["iat"]


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256", "ES384", "ES512", "EdDSA"])
async def test_key_alone_says_its_usual_algorithm(algorithm: str) -> None:
    signer = SIGNERS[algorithm]
    key = signer if isinstance(signer, str) else public_pem(signer)
    assert (await JWTAuth(key).verify(token(algorithm=algorithm))).user == "alice"


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "ES384", "ES512", "EdDSA"])
async def test_jwk_verifies(algorithm: str) -> None:
    auth = JWTAuth(jwk(SIGNERS[algorithm], algorithm, alg=algorithm, kid="one"))
    shown = token(algorithm=algorithm, headers={"kid": "one"})
    assert (await auth.verify(shown)).user == "alice"
    other = token(algorithm=algorithm, headers={"kid": "two"})
    assert await reason(auth, other) == "key"


async def test_ed448_verifies() -> None:
    signer = ed448.Ed448PrivateKey.generate()
    auth = JWTAuth(public_pem(signer))
    assert (await auth.verify(token(algorithm="EdDSA", key=signer))).user == "alice"


async def test_private_pem_verifies_by_its_public_half() -> None:
    auth = JWTAuth(private_pem(RSA_KEY))
    assert (await auth.verify(token(algorithm="RS256"))).user == "alice"


async def test_key_of_a_set_is_chosen_by_its_name() -> None:
    other = rsa.generate_private_key(65_537, 2_048)
    auth = JWTAuth(
        {
            "keys": [
                jwk(RSA_KEY, "RS256", kid="one"),
                jwk(other, "RS256", kid="two"),
                jwk(SIGNERS["ES256"], "ES256", kid="three"),
                {"kty": "RSA", "use": "enc", "n": "AQAB", "e": "AQAB", "kid": "for others"},
            ]
        }
    )
    assert (await auth.verify(token(algorithm="RS256", headers={"kid": "one"}))).user == "alice"
    shown = token(algorithm="RS256", key=other, headers={"kid": "two"})
    assert (await auth.verify(shown)).user == "alice"
    assert await reason(auth, token(algorithm="RS256", headers={"kid": "two"})) == "signature"
    # Without a name it would be a guess, but for the only key of its algorithm.
    assert await reason(auth, token(algorithm="RS256")) == "key"
    assert (await auth.verify(token(algorithm="ES256"))).user == "alice"
    # The name of one key with the algorithm of another.
    assert await reason(auth, token(algorithm="ES256", headers={"kid": "one"})) == "key"


@pytest.mark.parametrize(
    ("key", "algorithms", "complaint"),
    [
        (public_pem(RSA_KEY), ["HS256"], "HS256 cannot be used with an RSA key"),
        (public_pem(RSA_KEY), ["RS256", "HS256"], "HS256 cannot be used with an RSA key"),
        (jwk(RSA_KEY, "RS256", alg="HS256"), None, "'HS256' cannot be used with an RSA key"),
        (public_pem(SIGNERS["ES256"]), ["ES384"], "ES384 cannot be used with a P-256 key"),
        (SECRET, ["RS256"], "RS256 cannot be used with a secret"),
        (SECRET, ["none"], "'none' is not one of"),
        (SECRET, [], "must not be empty"),
        (SECRET, "HS256", "must be a list"),
        ("short", None, "the secret has 5 bytes; HS256 needs 32"),
        (SECRET, ["HS512"], "HS512 needs 64"),
        ("", None, "the secret has 0 bytes"),
        ("-----BEGIN PUBLIC KEY-----\nnonsense\n-----END PUBLIC KEY-----", None, "cannot be read"),
        ({"keys": []}, None, "no key"),
        ({"keys": 7}, None, "a JWK set"),
        ({"kty": "RSA"}, None, "cannot be read"),
        ({"no": "kty"}, None, "an object with a `kty`"),
        ({"kty": "oct"}, None, "cannot be read: it has no `k`"),
        ("public.pem", None, "looks like the name of a file: give what is in it"),
        ("/etc/crossband/keys/of/the/issuer/public.PEM", None, "the name of a file"),
        ("https://id.example.com/.well-known/jwks.json", None, "a URL: .* jwks_url="),
        (json.dumps(jwk(RSA_KEY, "RS256")), None, "a JWK: give the object, json.loads"),
        (json.dumps({"keys": [jwk(RSA_KEY, "RS256")]}), None, "a JWK: give the object"),
        (SECRET, [5], "5 is not one of"),
    ],
)
def test_key_that_does_not_fit_is_refused_at_construction(
    key: Any, algorithms: Any, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        JWTAuth(key, algorithms=algorithms)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_public_key_of_another_form_is_no_secret(algorithm: str) -> None:
    with pytest.raises(ValueError, match="the key is in DER form"):
        JWTAuth(public_der(SIGNERS[algorithm]))
    with pytest.raises(ValueError, match="a key of OpenSSH"):
        JWTAuth(public_ssh(SIGNERS[algorithm]))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"key": Path("public.pem")}, "not its path: Path('public.pem').read_text()"),
        (
            {"key": 5},
            "a key is a secret or a PEM text (str or bytes), or a JWK or JWK set (a dict), ",
        ),
        ({"key": [SECRET]}, "or a JWK or JWK set (a dict), not list"),
        ({"jwks_url": 5}, "jwks_url must be a URL, not 5"),
        ({"algorithms": 5}, "algorithms must be a list, such as ['HS256'], not 5"),
        ({"audience": 5}, "audience must be a name, or a list of names, not 5"),
        ({"issuer": b"me"}, "issuer must be a name, or a list of names, not b'me'"),
        ({"leeway": "x"}, "leeway must be 0 or more seconds, not 'x'"),
        ({"leeway": True}, "leeway must be 0 or more seconds, not True"),
        ({"jwks_lifetime": None}, "jwks_lifetime must be 0 or more seconds, not None"),
        ({"require_exp": "no"}, "require_exp must be True or False, not 'no'"),
        ({"anonymous": 1}, "anonymous must be True or False, not 1"),
        ({"cookie": 5}, "cookie must be the name of a cookie, not 5"),
        ({"user_claim": None}, "user_claim must be the name of a claim, not None"),
    ],
)
def test_argument_of_another_type_is_refused(arguments: dict[str, Any], complaint: str) -> None:
    usual: dict[str, Any] = {} if "jwks_url" in arguments else {"key": SECRET}
    with pytest.raises(TypeError, match=re.escape(complaint)):
        JWTAuth(**{**usual, **arguments})


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"audience": []}, "audience must be a name, a list of names, or None, not []"),
        ({"audience": ""}, "audience must be a name, a list of names, or None, not ''"),
        ({"issuer": ["me", 5]}, "issuer must be a name, a list of names, or None, not ['me', 5]"),
        ({"leeway": -1}, "leeway must be 0 or more seconds, not -1"),
        ({"leeway": float("nan")}, "leeway must be 0 or more seconds, not nan"),
        ({"jwks_cooldown": float("inf")}, "jwks_cooldown must be 0 or more seconds, not inf"),
        ({"cookie": "a b"}, "cookie must be the name of a cookie (RFC 6265 §4.1.1), which 'a b' "),
        ({"cookie": ""}, "cookie must be the name of a cookie (RFC 6265 §4.1.1), which '' cannot"),
        ({"user_claim": ""}, "user_claim must be the name of a claim, such as 'sub', not ''"),
    ],
)
def test_argument_that_cannot_work_is_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        JWTAuth(SECRET, **arguments)


@pytest.mark.parametrize(
    "secret", [b"0" + bytes(31), "{an odd secret of many characters}", "x" * 32 + "key", "AAAA" * 9]
)
def test_secret_may_look_odd(secret: Any) -> None:
    JWTAuth(secret, audience=("chat", "news"), issuer=["me"], cookie="__Host-session.1", leeway=1)


def test_small_rsa_key_is_refused() -> None:
    small = rsa.generate_private_key(65_537, 1_024)
    with pytest.raises(ValueError, match="1024 bits"):
        JWTAuth(public_pem(small))


def test_key_and_url_are_one_of_the_two() -> None:
    with pytest.raises(ValueError, match="either a key or a jwks_url"):
        JWTAuth()
    with pytest.raises(ValueError, match="either a key or a jwks_url"):
        JWTAuth(SECRET, jwks_url="https://example.com/keys")


# Tokens.


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"exp": int(time.time()) - 100}, "expired"),
        ({"exp": None}, "claim"),
        ({"exp": "soon"}, "claim"),
        ({"exp": True}, "expired"),
        ({"nbf": 2**40}, "not_yet_valid"),
        ({"iat": 2**40}, "not_yet_valid"),
        ({"nbf": "now"}, "claim"),
        ({"aud": "others"}, "audience"),
        ({"aud": None}, "audience"),
        ({"iss": "others"}, "issuer"),
        ({"iss": None}, "issuer"),
        ({"sub": None}, "claim"),
        ({"sub": ""}, "claim"),
        ({"sub": 7}, "claim"),
        ({"sub": "a" * 257}, "claim"),
        ({"sub": "alice\x00"}, "claim"),
        ({"sub": "alice\nroot"}, "claim"),
        ({"sub": "alice\ud800"}, "claim"),
        ({"rooms": "news"}, "claim"),
        ({"rooms": [7]}, "claim"),
        ({"rooms": {"listen": ["news"]}}, "claim"),
    ],
)
async def test_claims_that_are_refused(claims: dict[str, Any], expected: str) -> None:
    auth = JWTAuth(SECRET, audience=["chat", "board"], issuer="https://id.example.com")
    right = {"aud": "chat", "iss": "https://id.example.com"}
    assert (await auth.verify(token(right))).user == "alice"
    said = {name: value for name, value in {**right, **claims}.items() if value is not None}
    full = {"sub": "alice", "exp": int(time.time()) + 60, **right, **claims}
    body = {name: value for name, value in full.items() if value is not None}
    assert said
    shown = forged({"alg": "HS256", "typ": "JWT"}, body, SECRET.encode())
    assert await reason(auth, shown) == expected


@pytest.mark.parametrize(
    ("claims", "named"),
    [
        ({"exp": "soon"}, "exp"),
        ({"exp": 10**400}, "exp"),
        ({"exp": []}, "exp"),
        ({"nbf": "now"}, "nbf"),
        ({"nbf": None}, "nbf"),
        ({"iat": "now"}, "iat"),
        ({"iat": -(10**400)}, "iat"),
        ({"jti": 7}, "jti"),
        ({"sub": 7}, "sub"),
        ({"sub": ""}, "sub"),
        ({"sub": "a" * 257}, "sub"),
        ({"rooms": "news"}, "rooms"),
        # Two at once, and one of them a date.
        ({"nbf": "now", "exp": 1}, "nbf"),
    ],
)
async def test_error_names_the_claim_that_is_wrong(claims: dict[str, Any], named: str) -> None:
    shown = forged({"alg": "HS256"}, claims_now(**claims), SECRET.encode())
    with pytest.raises(Unauthorized, match=f": `{named}`") as refusal:
        await JWTAuth(SECRET).verify(shown)
    assert refusal.value.reason == "claim"


async def test_claim_that_is_missing_is_named() -> None:
    with pytest.raises(Unauthorized, match=r"missing or wrong: it has no `exp`$"):
        await JWTAuth(SECRET).verify(token({"exp": None}))


async def test_wrong_signature_is_told_before_a_wrong_claim() -> None:
    shown = forged({"alg": "HS256"}, claims_now(exp="soon"), b"another secret of thirty-two bytes")
    assert await reason(JWTAuth(SECRET), shown) == "signature"


async def test_token_for_an_audience_is_refused_where_none_is_set() -> None:
    assert await reason(JWTAuth(SECRET), token({"aud": "chat"})) == "audience"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"alg": "none"}, "algorithm"),
        ({"alg": "None"}, "algorithm"),
        ({"alg": ""}, "algorithm"),
        ({"alg": "HS512"}, "algorithm"),
        ({"alg": 7}, "malformed"),
        ({}, "malformed"),
        ({"alg": "HS256", "kid": 7}, "malformed"),
        ({"alg": "HS256", "crit": ["exp"], "exp": 1}, "critical"),
        ({"alg": "HS256", "crit": []}, "critical"),
        ({"alg": "HS256", "crit": ["b64"], "b64": False}, "critical"),
        ({"alg": "HS256", "b64": False}, "critical"),
    ],
)
async def test_headers_that_are_refused(header: dict[str, Any], expected: str) -> None:
    shown = forged(header, claims_now(), SECRET.encode())
    assert await reason(JWTAuth(SECRET), shown) == expected


async def test_unsigned_token_is_refused() -> None:
    for algorithm in ("none", "HS256"):
        shown = f"{b64({'alg': algorithm})}.{b64(claims_now())}."
        assert await reason(JWTAuth(SECRET), shown) in ("algorithm", "signature")


async def test_public_key_as_a_secret_is_refused() -> None:
    pem = public_pem(RSA_KEY)
    shown = forged({"alg": "HS256"}, claims_now(), pem.encode())
    assert await reason(JWTAuth(pem), shown) == "algorithm"
    assert await reason(JWTAuth(pem, algorithms=["RS256", "PS256"]), shown) == "algorithm"


async def test_key_inside_the_token_is_not_looked_at() -> None:
    stranger = rsa.generate_private_key(65_537, 2_048)
    headers = {"jwk": jwk(stranger, "RS256"), "jku": "http://127.0.0.1:9/keys"}
    shown = token(algorithm="RS256", key=stranger, headers=headers)
    assert await reason(JWTAuth(public_pem(RSA_KEY)), shown) == "signature"


@pytest.mark.parametrize(
    "shown",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "é.é.é",
        "\x00",
        f"{b64({'alg': 'HS256'})}.{b64(b'7')}.x",
        f"{b64(b'[' * 4000)}.{b64(claims_now())}.x",
        "a" * (MAX_TOKEN + 1),
    ],
)
async def test_what_is_no_token_is_refused(shown: str) -> None:
    with pytest.raises(Unauthorized) as refusal:
        await JWTAuth(SECRET).verify(shown)
    assert refusal.value.reason in ("malformed", "signature")


async def test_signed_nonsense_is_refused() -> None:
    deep = b"[" * 4000
    for body in (deep, b"7", b"[]", b"{", b'{"sub":"a","exp":1e999}', b'{"sub":"a","exp":NaN}'):
        text = f"{b64({'alg': 'HS256'})}.{b64(body)}"
        shown = f"{text}.{b64(hmac.digest(SECRET.encode(), text.encode(), hashlib.sha256))}"
        assert await reason(JWTAuth(SECRET), shown) in ("claim", "malformed")


async def test_mutations_of_a_token_are_refused() -> None:
    auth = JWTAuth(SECRET)
    good = token()
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    accepted = []
    for _ in range(500):
        text = list(good)
        for _ in range(rng.randint(1, 3)):
            text[rng.randrange(len(text))] = rng.choice("AZaz09-_.= é{")
        shown = "".join(text)
        try:
            await auth.verify(shown)
        except Unauthorized:
            continue
        accepted.append(shown)
    # The last character of base64 has bits that count for nothing.
    assert all(shown[:-1] == good[:-1] for shown in accepted), seed


async def test_leeway_is_for_clocks_that_differ() -> None:
    late = token({"exp": int(time.time()) - 5})
    assert await reason(JWTAuth(SECRET), late) == "expired"
    identity = await JWTAuth(SECRET, leeway=60).verify(late)
    # As long as it is accepted.
    assert identity.expires == identity.claims["exp"] + 60


async def test_token_without_expiry_is_let_in_on_request() -> None:
    identity = await JWTAuth(SECRET, require_exp=False).verify(token({"exp": None}))
    assert identity.expires is None
    past = token({"exp": int(time.time()) - 5})
    assert await reason(JWTAuth(SECRET, require_exp=False), past) == "expired"


async def test_user_may_be_another_claim() -> None:
    auth = JWTAuth(SECRET, user_claim="email")
    assert (await auth.verify(token({"email": "a@example.com"}))).user == "a@example.com"
    assert await reason(auth, token()) == "claim"


@pytest.mark.parametrize("number", [5, 0, -7, 2**63, 10**255])
async def test_user_may_be_a_whole_number(number: int) -> None:
    # As Django's SimpleJWT makes them.
    auth = JWTAuth(SECRET, user_claim="user_id")
    identity = await auth.verify(token({"sub": None, "user_id": number}))
    assert identity.user == str(number)
    assert identity.claims["user_id"] == number


@pytest.mark.parametrize(
    ("claim", "found"),
    [
        (5.0, "it is a fraction"),
        (True, "it is true"),
        (None, "it is null"),
        ("", "it is empty"),
        (["alice"], "it is a list"),
        ({"id": 5}, "it is an object"),
        (10**256, "it is a whole number"),
    ],
)
async def test_user_that_is_nothing_of_the_kind_is_told_so(claim: Any, found: str) -> None:
    shown = forged({"alg": "HS256"}, claims_now(user_id=claim), SECRET.encode())
    with pytest.raises(Unauthorized) as refusal:
        await JWTAuth(SECRET, user_claim="user_id").verify(shown)
    assert refusal.value.reason == "claim"
    assert refusal.value.message.endswith(
        f": `user_id` must name the user, by a string or a whole number; {found}"
    )


async def test_user_that_is_missing_is_told_so() -> None:
    with pytest.raises(Unauthorized, match=r"`user_id` must name the user, .*; it is missing$"):
        await JWTAuth(SECRET, user_claim="user_id").verify(token())


@pytest.mark.parametrize(
    ("claim", "complaint"),
    [
        ("news", 'expected a list of room patterns, such as ["news"], not a string'),
        (5, "not a whole number"),
        (True, "not true"),
        ({"publish": "news"}, 'such as ["news"], not a string'),
        ([7], "expected room patterns that are strings, not a whole number"),
        ({"subscribe": [["a"]]}, "strings, not a list"),
        ({"listen": ["news"]}, "expected subscribe and publish, not ['listen']"),
    ],
)
async def test_rooms_that_cannot_be_read_are_told_why(claim: Any, complaint: str) -> None:
    with pytest.raises(Unauthorized, match=f": `rooms`: .*{re.escape(complaint)}"):
        await JWTAuth(SECRET).verify(token({"rooms": claim}))


async def test_date_as_text_of_a_number_counts() -> None:
    shown = forged({"alg": "HS256"}, claims_now(exp=str(2**33)), SECRET.encode())
    assert (await JWTAuth(SECRET).verify(shown)).expires == 2**33


# Where it is shown.


@pytest.mark.parametrize(
    "handshake",
    [
        shaken(auth={"token": "t.o.k"}),
        shaken(authorization="Bearer t.o.k"),
        shaken(authorization="bearer  t.o.k "),
        shaken(sec_websocket_protocol="crossband, bearer.t.o.k"),
        shaken(query={"token": ["", "t.o.k"]}),
        shaken(cookie="a=b; session_token=t.o.k"),
        shaken(cookie='session_token="t.o.k", a=b'),
        # The first place counts.
        shaken(auth={"token": "t.o.k"}, authorization="Bearer other"),
        shaken(authorization="Bearer t.o.k", query={"token": ["other"]}),
        shaken(query={"token": ["t.o.k"]}, cookie="session_token=other"),
        shaken(auth={"token": 7}, authorization="Basic abc", query={"token": ["t.o.k"]}),
    ],
)
def test_token_is_found(handshake: Handshake) -> None:
    assert bearer_token(handshake, cookie="session_token") == "t.o.k"


@pytest.mark.parametrize(
    "handshake",
    [
        shaken(),
        shaken(authorization="Bearer "),
        shaken(authorization="Basic dDpv"),
        shaken(sec_websocket_protocol="bearer., crossband"),
        shaken(cookie="session_token=t.o.k"),
    ],
)
def test_no_token_is_found(handshake: Handshake) -> None:
    assert bearer_token(handshake) is None


async def test_client_without_a_token_is_refused_or_anonymous() -> None:
    with pytest.raises(Unauthorized) as refusal:
        await JWTAuth(SECRET)(shaken())
    assert refusal.value.reason == "missing"
    assert await JWTAuth(SECRET, anonymous=True)(shaken()) is None
    with pytest.raises(Unauthorized):
        await JWTAuth(SECRET, anonymous=True)(shaken(authorization="Bearer nonsense"))


# Rights.


@pytest.mark.parametrize(
    ("pattern", "room", "expected"),
    [
        ("news", "news", True),
        ("news", "newsroom", False),
        ("team-*", "team-", True),
        ("team-*", "team-a-b", True),
        ("team-*", "a team-b", False),
        ("*", "", True),
        ("*-a-*", "x-a-y", True),
        ("*-a-*", "x-b-y", False),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a*b*c", "a-b-b-c", True),
        ("a*b*c", "a-c-b", False),
        ("a**c", "ac", True),
        ("a?c", "abc", False),
        ("[ab]", "a", False),
        ("a.c", "abc", False),
    ],
)
def test_pattern(pattern: str, room: str, expected: bool) -> None:
    assert matches(pattern, room) is expected


def test_hostile_pattern_takes_no_time() -> None:
    # Where every star is tried in every place, it takes longer than anybody waits.
    assert not matches("*a" * 1_000, "a" * 999 + "b")


def test_rights_of_a_claim() -> None:
    both = Rights.from_claim(["news", "team-*"])
    assert both.allow("subscribe", "team-1")
    assert both.allow("publish", "news")
    assert not both.allow("publish", None)
    apart = Rights.from_claim({"subscribe": ["*"], "publish": ["news"]})
    assert apart.allow("subscribe", "anything")
    assert not apart.allow("publish", "anything")
    assert apart.allow("subscribe", None)
    assert not Rights.from_claim(None).allow("subscribe", "news")


@pytest.mark.parametrize("patterns", ["team-*", b"*", None, 5, [1], {"news": True}])
def test_rights_take_no_single_string(patterns: Any) -> None:
    with pytest.raises(TypeError, match="subscribe takes room patterns, such as "):
        Rights(subscribe=patterns)
    with pytest.raises(TypeError, match="publish takes room patterns, such as "):
        Rights((), patterns)


def test_rights_take_lists_and_sets() -> None:
    rights: Any = {"subscribe": ["team-*"], "publish": {"news"}}
    assert Rights(**rights) == Rights(("team-*",), ("news",))


def test_identity_is_named_by_a_string() -> None:
    with pytest.raises(ValueError, match=r"1 to 256 characters, not int: Identity\('5'\)"):
        Identity(5)  # type: ignore[arg-type]

    class User(enum.StrEnum):
        ALICE = "alice"

    assert type(Identity(User.ALICE).user) is str


async def test_user_to_revoke_is_named_by_a_string() -> None:
    hub = Hub()
    number: Any = 5
    complaint = "a user is named by a string, not int: write '5'"
    with pytest.raises(TypeError, match=complaint):
        hub.sockets_of(number)
    with pytest.raises(TypeError, match=complaint):
        await hub.revoke(number)


@pytest.mark.parametrize(
    "fields",
    [
        {"user": ""},
        {"user": 7},
        {"expires": float("nan")},
        {"expires": "soon"},
        {"issued": True},
    ],
)
def test_identity_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Identity(**{"user": "alice", **fields})


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"rights": 5}, "rights must be Rights(…), not 5"),
        ({"rights": ["news"]}, "rights must be Rights(…), not ['news']"),
        ({"claims": "all"}, "claims must be a mapping, not 'all'"),
    ],
)
def test_identity_of_other_types_is_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TypeError, match=re.escape(complaint)):
        Identity("alice", **fields)


# Key sets behind a URL.


class Authority:
    """A server of a JWK set, which counts who asks."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.asked = 0
        # What the last who asked would have it encoded as.
        self.accepted: list[str] = []
        # Answers in place of the set, when set.
        self.answer: Callable[[], Response] | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def serve(self, request: Request) -> Response:
        self.asked += 1
        self.accepted = request.headers.getlist("accept-encoding")
        await self.gate.wait()
        return self.answer() if self.answer is not None else JSONResponse({"keys": self.keys})


@asynccontextmanager
async def running(authority: Authority) -> AsyncIterator[str]:
    app = Starlette(routes=[Route("/jwks", authority.serve)])
    async with Server(app) as server:
        yield f"{server.url}/jwks"


async def test_keys_of_a_url_rotate() -> None:
    authority = Authority()
    authority.keys = [jwk(RSA_KEY, "RS256", kid="one", alg="RS256")]
    async with running(authority) as url:
        auth = JWTAuth(jwks_url=url, jwks_cooldown=0)
        first = token(algorithm="RS256", headers={"kid": "one"})
        assert (await auth.verify(first)).user == "alice"
        assert (await auth.verify(first)).user == "alice"
        assert authority.asked == 1
        authority.keys = [jwk(SIGNERS["ES256"], "ES256", kid="two")]
        second = token(algorithm="ES256", headers={"kid": "two"})
        assert (await auth.verify(second)).user == "alice"
        assert authority.asked == 2
        # The old key is gone with the set it was in.
        assert await reason(auth, first) in ("key", "algorithm")


async def test_unknown_keys_cause_one_fetch() -> None:
    authority = Authority()
    authority.keys = [jwk(RSA_KEY, "RS256", kid="one")]
    async with running(authority) as url:
        auth = JWTAuth(jwks_url=url, jwks_cooldown=60)
        strangers = [token(algorithm="RS256", headers={"kid": str(n)}) for n in range(50)]
        found = await asyncio.gather(*(reason(auth, shown) for shown in strangers))
        assert set(found) == {"key"}
        assert authority.asked == 1
        assert (await auth.verify(token(algorithm="RS256", headers={"kid": "one"}))).user
        # Not even asked for: no key behind a URL is for these.
        for algorithm in ("HS256", "none"):
            shown = forged({"alg": algorithm, "kid": "x"}, claims_now(), b"secret")
            assert await reason(auth, shown) == "algorithm"
        assert authority.asked == 1


@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
async def test_secrets_and_unusable_keys_of_a_url_are_left_out() -> None:
    authority = Authority()
    secret = {"kty": "oct", "k": b64(SECRET.encode()), "kid": "shared", "alg": "HS256"}
    small = rsa.generate_private_key(65_537, 1_024)
    authority.keys = [
        secret,
        jwk(small, "RS256", kid="small"),
        {"kty": "of tomorrow"},
        jwk(RSA_KEY, "RS256", kid="one"),
    ]
    async with running(authority) as url:
        auth = JWTAuth(jwks_url=url)
        assert await reason(auth, token(headers={"kid": "shared"})) == "algorithm"
        shown = token(algorithm="RS256", key=small, headers={"kid": "small"})
        assert await reason(auth, shown) == "key"
        assert (await auth.verify(token(algorithm="RS256", headers={"kid": "one"}))).user


@pytest.mark.parametrize(
    "answer",
    [
        lambda: Response(status_code=500),
        lambda: Response("not JSON"),
        lambda: JSONResponse([]),
        lambda: JSONResponse({"keys": []}),
        lambda: Response("{" + " " * keys.MAX_KEY_SET + "}"),
        lambda: Response("[" * 100_000),
        lambda: RedirectResponse("http://127.0.0.1:9/elsewhere"),
    ],
)
async def test_keys_that_cannot_be_fetched_are_the_servers_fault(
    answer: Callable[[], Response], caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority()
    authority.answer = answer
    async with running(authority) as url:
        auth = JWTAuth(jwks_url=url, jwks_cooldown=0)
        shown = token(algorithm="RS256", headers={"kid": "one"})
        with pytest.raises(ConnectionRefused) as refusal:
            await auth.verify(shown)
        assert (refusal.value.status, refusal.value.code) == (503, "unavailable")
        assert "cannot be fetched" in caplog.text
        # It comes round by itself.
        authority.answer = None
        authority.keys = [jwk(RSA_KEY, "RS256", kid="one")]
        assert (await auth.verify(shown)).user == "alice"
        # And known keys go on counting when it is gone again.
        authority.answer = answer
        assert (await auth.verify(shown)).user == "alice"


async def test_keys_are_taken_as_they_are_or_not_at_all(caplog: pytest.LogCaptureFixture) -> None:
    authority = Authority()
    authority.keys = [jwk(RSA_KEY, "RS256", kid="one")]
    body = gzip.compress(json.dumps({"keys": authority.keys}).encode())
    authority.answer = lambda: Response(body, headers={"Content-Encoding": "gzip"})
    async with running(authority) as url:
        auth = JWTAuth(jwks_url=url, jwks_cooldown=0)
        shown = token(algorithm="RS256", headers={"kid": "one"})
        with pytest.raises(ConnectionRefused):
            await auth.verify(shown)
        assert authority.accepted == ["identity"]
        assert "Content-Encoding 'gzip', which was not asked for" in caplog.text
        authority.answer = None
        assert (await auth.verify(shown)).user == "alice"


async def test_keys_are_fetched_again_when_they_are_old() -> None:
    authority = Authority()
    authority.keys = [jwk(RSA_KEY, "RS256", kid="one")]
    now = 0.0
    async with running(authority) as url:
        remote = keys.RemoteKeys(
            url, None, issuer="us", lifetime=100, cooldown=10, clock=lambda: now
        )
        assert await remote.find("one", "RS256") is not None
        now = 99.0
        assert await remote.find("one", "RS256") is not None
        assert authority.asked == 1
        now = 300.0
        authority.keys = []
        # The answer has no key: the old ones count on, and the next attempt waits.
        assert await remote.find("one", "RS256") is not None
        assert authority.asked == 2
        now = 305.0
        assert await remote.find("one", "RS256") is not None
        assert authority.asked == 2
        now = 300.0 + keys.RemoteKeys.STALE_TIME
        with pytest.raises(keys.KeysUnavailable):
            await remote.find("one", "RS256")


def test_url_of_keys_is_checked(caplog: pytest.LogCaptureFixture) -> None:
    for url in ("", "file:///etc/passwd", "keys.json", "https://", "https://[::1"):
        with pytest.raises(ValueError, match="JWKS URL"):
            JWTAuth(jwks_url=url)
    with pytest.raises(ValueError, match="HS256 needs a secret"):
        JWTAuth(jwks_url="https://example.com/keys", algorithms=["HS256"])
    JWTAuth(jwks_url="http://127.0.0.1/keys")
    assert not caplog.records
    JWTAuth(jwks_url="http://example.com/keys")
    assert "without TLS" in caplog.text


# Logs.


@pytest.mark.parametrize(
    "line",
    [
        "GET /ws?room=a&token=TOKEN&x=1 HTTP/1.1",
        "GET /ws?access_token=TOKEN",
        "GET /events?session=TOKEN",
        "Authorization: Bearer TOKEN",
        'headers: {"authorization": "Bearer TOKEN"}',
        '{"token": "TOKEN", "room": "a"}',
        "{'pid': 'TOKEN'}",
        "sec-websocket-protocol: crossband, bearer.TOKEN",
        "the token TOKEN is bad",
        "/files/a-TOKEN and page.TOKEN",
    ],
)
def test_token_is_redacted(line: str) -> None:
    secret = token()
    shown = redaction.redact(line.replace("TOKEN", secret))
    assert secret not in shown
    assert secret.split(".")[1] not in shown
    assert secret.split(".")[2] not in shown
    assert "…" in shown
    # The rest is still there.
    assert shown.replace("…", "TOKEN") == line


@pytest.mark.parametrize(
    "line",
    [
        # All that a session of Socket.IO's polling shows.
        "GET /socket.io/?EIO=4&transport=polling&sid=SECRET&t=x HTTP/1.1",
        "GET /ws?to%6Ben=SECRET",
        "GET /ws?x=1&%74%6f%6B%65n=SECRET&room=a",
        "GET /ws?access%5Ftoken=SECRET",
        "GET /events?se%73sion=SECRET",
        "X-API-Key: SECRET",
    ],
)
def test_secret_of_any_form_is_redacted_by_its_name(line: str) -> None:
    shown = redaction.redact(line.replace("SECRET", "abc-DEF_123"))
    assert shown == line.replace("SECRET", "…")


def test_other_fields_stay() -> None:
    line = "GET /ws?room=a&inside=1&%74okens=2&stoken=3&to%6Be=4 HTTP/1.1"
    assert redaction.redact(line) == line


@pytest.mark.parametrize(
    "piece",
    [
        "%74",
        "to%6Be",
        "sid",
        "%73%69",
        "eyJ-",
        "eyJ.",
        "token ",
        "token=",
        "Bearer ",
        "session:\t",
        "a.",
        "pid'",
    ],
)
def test_hostile_line_is_redacted_in_linear_time(piece: str) -> None:
    def cost(count: int) -> float:
        line = piece * count
        started = time.thread_time()
        redaction.redact(line)
        return time.thread_time() - started

    # Sixteen times as much takes sixteen times as long; in quadratic time, 256 times.
    assert cost(16_000) < 64 * max(cost(1_000) for _ in range(3))


def test_log_lines_are_redacted(caplog: pytest.LogCaptureFixture) -> None:
    redaction.install()
    redaction.install()
    secret = token()
    for name in redaction.LOGGERS:
        logger = logging.getLogger(name)
        assert logger.filters.count(redaction.redacting) == 1
        logger.warning("GET /ws?token=%s", secret)
        logger.warning("%s went to %s in %d ms", "alice", f"/ws?token={secret}", 7)
        logger.warning("%(what)s", {"what": f"/ws?token={secret}"})
        try:
            raise ValueError(f"bad token {secret}")
        except ValueError as error:
            logger.exception(error)
        # A format that does not fit is the handlers' to tell.
        record = logger.makeRecord(name, logging.INFO, "", 0, "%d", (f"token={secret}",), None)
        assert redaction.redacting(record)
        assert secret not in str(record.args)
    assert "alice went to /ws?token=… in 7 ms" in caplog.text
    assert "ValueError: bad token …" in caplog.text
    assert secret not in caplog.text
    assert secret.split(".")[2] not in caplog.text


def test_handshake_does_not_print_its_secrets() -> None:
    secret = token()
    shown = shaken(auth={"token": secret}, query={"token": [secret]}, cookie=secret)
    assert secret not in repr(shown)
    assert "127.0.0.1" in repr(shown)
