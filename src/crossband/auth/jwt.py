"""JSON Web Tokens as identities: `Hub(authenticate=JWTAuth(…))`."""

from __future__ import annotations

import base64
import functools
import importlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from crossband.auth import MAX_TOKEN, MAX_USER, Identity, Rights, bearer_token, kind_of
from crossband.auth.keys import (
    KeySource,
    KeysUnavailable,
    RemoteKeys,
    StaticKeys,
    check_algorithms,
    load_keys,
    signing_key,
)
from crossband.errors import ConnectionRefused, Unauthorized
from crossband.handshake import Handshake

if TYPE_CHECKING:
    from jwt.types import Options

# What can be wrong with a token: the word for programs, and the sentence for people.
REASONS: Final[Mapping[str, str]] = {
    "missing": "No token was shown",
    "malformed": "The token cannot be read",
    "algorithm": "The token's algorithm is not accepted",
    "critical": "The token has extensions that are not understood (RFC 7515 §4.1.11)",
    "key": "The token's key is not known",
    "signature": "The token's signature is wrong",
    "expired": "The token has expired",
    "not_yet_valid": "The token is not valid yet",
    "audience": "The token is for another audience",
    "issuer": "The token is from another issuer",
    "claim": "A claim of the token is missing or wrong",
}

# RFC 6265 §4.1.1: a `token` as in RFC 2616 §2.2.
_COOKIE_NAME: Final = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)


def _refused(reason: str, detail: str = "") -> Unauthorized:
    return Unauthorized(REASONS[reason] + (f": {detail}" if detail else ""), reason=reason)


class JWTAuth:
    """Authenticate clients by JSON Web Tokens (RFC 7519).

    `key` is a secret (str or bytes, at least 32 bytes), a PEM public key, a JWK or a JWK
    set; alternatively, a set is fetched from `jwks_url`. Each key is pinned to algorithms of
    its kind: those of `algorithms` that fit, a JWK's own `alg`, or the usual one (HS256, RS256,
    ES256/384/512, EdDSA). Raises ValueError for an algorithm that fits none of the keys.

    A token must name `audience` and `issuer`, or one of each if they are lists; without
    `audience`, tokens that name any are refused. `leeway` is how many seconds clocks may differ.
    `require_exp=False` accepts tokens without `exp`, which never expire. `anonymous=True` admits
    clients without a token, with no identity. `cookie` names a cookie that may hold the token,
    `user_claim` the claim that identifies the user: a string, or a whole number, whose digits
    become the user's name (`sub` must be a string, RFC 7519 §4.1.2).
    """

    def __init__(
        self,
        key: KeySource | None = None,
        *,
        jwks_url: str | None = None,
        algorithms: Sequence[str] | None = None,
        audience: str | Sequence[str] | None = None,
        issuer: str | Sequence[str] | None = None,
        leeway: float = 0.0,
        require_exp: bool = True,
        anonymous: bool = False,
        cookie: str | None = None,
        user_claim: str = "sub",
        jwks_lifetime: float = 3_600.0,
        jwks_cooldown: float = 10.0,
    ) -> None:
        if (key is None) == (jwks_url is None):
            raise ValueError("give JWTAuth either a key or a jwks_url")
        if not isinstance(jwks_url, str | None):
            raise TypeError(f"jwks_url must be a URL, not {jwks_url!r}")
        check_algorithms(algorithms)
        _check_seconds("leeway", leeway)
        _check_seconds("jwks_lifetime", jwks_lifetime)
        _check_seconds("jwks_cooldown", jwks_cooldown)
        _check_switch("require_exp", require_exp)
        _check_switch("anonymous", anonymous)
        if not isinstance(cookie, str | None):
            raise TypeError(f"cookie must be the name of a cookie, not {cookie!r}")
        if cookie is not None and _COOKIE_NAME.fullmatch(cookie) is None:
            raise ValueError(
                f"cookie must be the name of a cookie (RFC 6265 §4.1.1), which {cookie!r} cannot be"
            )
        if not isinstance(user_claim, str):
            raise TypeError(f"user_claim must be the name of a claim, not {user_claim!r}")
        if not user_claim:
            raise ValueError("user_claim must be the name of a claim, such as 'sub', not ''")
        # Imported now, not while the first client waits, and only for hubs with tokens.
        importlib.import_module("jwt")
        self.audience: Final = _names(audience, "audience")
        self.issuer: Final = _names(issuer, "issuer")
        self.leeway = leeway
        self.require_exp = require_exp
        self.anonymous = anonymous
        self.cookie = cookie
        self.user_claim = user_claim
        self._keys: StaticKeys | RemoteKeys
        if jwks_url is not None:
            self._keys = RemoteKeys(
                jwks_url,
                algorithms,
                issuer=self.issuer[0] if self.issuer else jwks_url,
                lifetime=jwks_lifetime,
                cooldown=jwks_cooldown,
            )
        else:
            assert key is not None
            self._keys = StaticKeys(load_keys(key, algorithms))

    async def __call__(self, handshake: Handshake) -> Identity | None:
        """Return the identity in a client's token. Raises Unauthorized."""
        token = bearer_token(handshake, cookie=self.cookie)
        if token is None:
            if self.anonymous:
                return None
            raise _refused("missing")
        return await self.verify(token)

    async def verify(self, token: str) -> Identity:
        """Return the identity that a token proves.

        Raises Unauthorized with its `reason`, or ConnectionRefused (503) if the keys cannot be
        fetched.
        """
        import jwt

        if len(token) > MAX_TOKEN:
            raise _refused("malformed", f"it has more than {MAX_TOKEN} characters")
        header = _header(token)
        # `b64` is one of them (RFC 7797).
        if "crit" in header or "b64" in header:
            raise _refused("critical")
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or not isinstance(kid, str | None):
            raise _refused("malformed")
        try:
            key = await self._keys.find(kid, algorithm)
        except KeysUnavailable:
            raise ConnectionRefused(
                "The keys that tokens are verified with cannot be fetched",
                code="unavailable",
                status=503,
            ) from None
        if key is None:
            raise _refused("key" if self._keys.accept(algorithm) else "algorithm")
        options: Options = {"require": ["exp"] if self.require_exp else []}
        decode = functools.partial(
            jwt.decode,
            token,
            key.material,
            algorithms=list(key.algorithms),
            audience=self.audience or None,
            issuer=self.issuer or None,
            leeway=self.leeway,
        )
        try:
            try:
                claims = decode(options=options)
            except (jwt.DecodeError, jwt.InvalidIssuedAtError):
                # PyJWT raises the same error for an invalid date as for an unreadable token.
                undated: Options = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
                claims = decode(options={**options, **undated})
                for name in ("exp", "nbf", "iat"):
                    _seconds(claims, name)
                raise
        except (jwt.PyJWTError, ValueError, OverflowError, TypeError, RecursionError) as error:
            raise _refusal(error) from None
        return self._identity(claims)

    def _identity(self, claims: dict[str, Any]) -> Identity:
        user = _user(claims, self.user_claim)
        try:
            rights = Rights.from_claim(claims.get("rooms"))
        except ValueError as error:
            raise _refused("claim", f"`rooms`: {error}") from None
        expires = _seconds(claims, "exp")
        try:
            return Identity(
                user,
                # The time until which it is accepted.
                expires=None if expires is None else int(expires) + self.leeway,
                issued=_seconds(claims, "iat"),
                rights=rights,
                claims=claims,
            )
        except ValueError as error:
            raise _refused("claim", f"`{self.user_claim}`: {error}") from None


def sign_token(
    claims: Mapping[str, Any],
    source: KeySource,
    *,
    algorithm: str | None = None,
    kid: str | None = None,
) -> str:
    """Return a token, signed with a secret, a private PEM key or a private JWK.

    For trying things out: real tokens come from whatever logs users in. Raises ValueError.
    """
    import jwt

    key, default, name = signing_key(source, algorithm)
    kid = name if kid is None else kid
    try:
        return jwt.encode(
            dict(claims), key, algorithm=default, headers=None if kid is None else {"kid": kid}
        )
    except (jwt.PyJWTError, TypeError) as error:
        raise ValueError(str(error)) from None


def _header(token: str) -> dict[str, Any]:
    """Return a token's header, which is not verified yet."""
    head = token.partition(".")[0]
    try:
        text = base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))
        return msgspec.json.decode(text, type=dict[str, Any])
    except (ValueError, RecursionError, msgspec.MsgspecError):
        raise _refused("malformed") from None


def _user(claims: Mapping[str, Any], name: str) -> str:
    """Return the claim that identifies the user; a whole number as its digits.

    In `sub` a number was already refused: RFC 7519 §4.1.2.
    """
    user = claims.get(name)
    if type(user) is int and abs(user) < 10**MAX_USER:
        return str(user)
    if isinstance(user, str) and user:
        return user
    found = "it is empty" if user == "" else f"it is {kind_of(user)}"
    if name not in claims:
        found = "it is missing"
    raise _refused("claim", f"`{name}` must name the user, by a string or a whole number; {found}")


def _seconds(claims: Mapping[str, Any], name: str) -> float | None:
    """Return a claim that is a date (RFC 7519 §2), or None if it is missing."""
    if name not in claims:
        return None
    try:
        int(claims[name])  # As PyJWT reads it; 10**400 passes here, but float() fails.
        return float(claims[name])
    except (ValueError, TypeError, OverflowError):
        raise _refused("claim", f"`{name}` must be a number of seconds since 1970") from None


def _names(value: str | Sequence[str] | None, what: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, (str, list, tuple, set, frozenset)):
        raise TypeError(f"{what} must be a name, or a list of names, not {value!r}")
    names = [value] if isinstance(value, str) else list(value)
    # An empty list would accept no name, but looks as if it accepted any.
    if not names or not all(type(name) is str and name for name in names):
        raise ValueError(f"{what} must be a name, a list of names, or None, not {value!r}")
    return names


def _check_seconds(name: str, value: object) -> None:
    complaint = f"{name} must be 0 or more seconds, not {value!r}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(complaint)
    if not 0 <= value < math.inf:
        raise ValueError(complaint)


def _check_switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")


def _refusal(error: Exception) -> Unauthorized:
    import jwt
    from jwt.exceptions import InvalidJTIError, InvalidSubjectError

    table: tuple[tuple[type[Exception], str], ...] = (
        (jwt.ExpiredSignatureError, "expired"),
        (jwt.ImmatureSignatureError, "not_yet_valid"),
        (jwt.InvalidAudienceError, "audience"),
        (jwt.InvalidIssuerError, "issuer"),
        (jwt.InvalidAlgorithmError, "algorithm"),
        (jwt.InvalidSignatureError, "signature"),
        (jwt.DecodeError, "malformed"),
    )
    if isinstance(error, jwt.MissingRequiredClaimError):
        named = {"aud": "audience", "iss": "issuer"}.get(error.claim, "claim")
        return _refused(named, f"it has no `{error.claim}`")
    for kind, reason in table:
        if isinstance(error, kind):
            return _refused(reason)
    # The signature is valid, but a signed claim has the wrong type.
    for kind, claim in ((InvalidSubjectError, "sub"), (InvalidJTIError, "jti")):
        if isinstance(error, kind):
            return _refused("claim", f"`{claim}` must be a string")
    return _refused("claim" if isinstance(error, jwt.InvalidTokenError) else "malformed")
