"""Keys to verify signatures with: secrets, PEM, JWK, and key sets behind a fixed URL."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from math import inf
from typing import Any, Final
from urllib.parse import urlsplit

logger: Final = logging.getLogger("crossband")

# Algorithms by kind of key, the default first (RFC 7518 §3.1, RFC 8037 §3.1).
KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "a secret": ("HS256", "HS384", "HS512"),
    "an RSA key": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "a P-256 key": ("ES256",),
    "a P-384 key": ("ES384",),
    "a P-521 key": ("ES512",),
    "an Ed25519 or Ed448 key": ("EdDSA",),
}
ALGORITHMS: Final = frozenset(name for names in KINDS.values() for name in names)
_CURVES: Final = {
    "secp256r1": "a P-256 key",
    "secp384r1": "a P-384 key",
    "secp521r1": "a P-521 key",
}
# Least bytes of a secret, by algorithm (RFC 7518 §3.2).
_SECRET_SIZE: Final = {"HS256": 32, "HS384": 48, "HS512": 64}
_RSA_BITS: Final = 2_048

# Bounds, in keys and bytes, on a key set behind a URL. Real ones have 2 to 10 keys and 10 KB.
MAX_KEYS: Final = 100
MAX_KEY_SET: Final = 262_144
FETCH_TIME: Final = 5.0

# Things that are not secrets but were given as one, and what to do instead.
_NO_SECRETS: Final = (
    (re.compile(rb"https?://\S*"), "the secret looks like a URL: keys behind one are jwks_url=…"),
    (
        re.compile(rb"[^\n]*\.(?:pem|key|pub|crt|cer|der|jwks?|json)", re.IGNORECASE),
        "the secret looks like the name of a file: give what is in it, Path(…).read_text()",
    ),
    (
        re.compile(rb"\s*\{.*\"k(?:ty|eys)\".*\}\s*", re.DOTALL),
        "the secret looks like a JWK: give the object, json.loads(…)",
    ),
    (
        re.compile(rb"(?:ssh|ecdsa)-\S+ AAAA.*", re.DOTALL),
        "the secret looks like a key of OpenSSH: convert it, ssh-keygen -e -m PKCS8 -f …",
    ),
)

KeySource = str | bytes | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Key:
    """A key, and the algorithms it is pinned to."""

    # A secret's bytes, or a public key of `cryptography`.
    material: Any
    algorithms: tuple[str, ...]
    # None if it has no name.
    kid: str | None = None


class KeysUnavailable(Exception):
    """The key set could not be fetched, and there is no earlier one."""


def check_algorithms(algorithms: Sequence[str] | None) -> None:
    """Raise ValueError for an algorithm that is not one of ours, `none` for example."""
    if isinstance(algorithms, str):
        raise ValueError(f"algorithms must be a list, such as [{algorithms!r}]")
    if not isinstance(algorithms, (list, tuple, set, frozenset, type(None))):
        raise TypeError(f"algorithms must be a list, such as ['HS256'], not {algorithms!r}")
    if algorithms is not None and not algorithms:
        raise ValueError("algorithms must not be empty")
    for name in algorithms or ():
        if not isinstance(name, str) or name not in ALGORITHMS:
            raise ValueError(f"{name!r} is not one of {', '.join(sorted(ALGORITHMS))}")


def load_keys(source: KeySource, algorithms: Sequence[str] | None) -> list[Key]:
    """Read a secret, a PEM key, a JWK or a JWK set.

    Raises ValueError, or TypeError for a path or anything else that cannot be a key.
    """
    check_algorithms(algorithms)
    if isinstance(source, Mapping):
        keys = list(read_set(source, algorithms, strict=True))
        if not keys:
            raise ValueError("the JWK set has no key to verify signatures with")
    elif isinstance(source, (str, bytes)):
        text = source.encode() if isinstance(source, str) else source
        pem = text.lstrip().startswith(b"-----BEGIN")
        if not pem:
            _check_secret(text)
        keys = [_pin(read_pem(text) if pem else text, algorithms)]
    else:
        raise TypeError(_no_key(source))
    # Each requested algorithm must fit some key.
    pinned = {name for key in keys for name in key.algorithms}
    for name in algorithms or ():
        if name not in pinned:
            kinds = " and ".join(sorted({_kind(key.material) for key in keys}))
            raise ValueError(f"{name} cannot be used with {kinds}")
    return keys


def _no_key(source: object) -> str:
    if isinstance(source, os.PathLike):
        return f"give the key, not its path: Path({os.fspath(source)!r}).read_text()"
    return (
        "a key is a secret or a PEM text (str or bytes), or a JWK or JWK set (a dict), "
        f"not {type(source).__name__}"
    )


def _check_secret(text: bytes) -> None:
    """Raise ValueError for a text that was mistaken for a secret.

    Others know it or can guess it, and could make tokens.
    """
    for pattern, complaint in _NO_SECRETS:
        if pattern.fullmatch(text):
            raise ValueError(complaint)
    # ASN.1's SEQUENCE; one random secret in 200 also starts this way.
    if text.startswith(b"0") and _is_der(text):
        raise ValueError("the key is in DER form: convert it to PEM, openssl pkey -pubin -in …")


def _is_der(text: bytes) -> bool:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        serialization.load_der_public_key(text)
    except (ValueError, UnsupportedAlgorithm):
        return False
    return True


def read_pem(text: bytes) -> Any:
    """Return the public key in a PEM text; for a private key, its public half."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        if b"PRIVATE KEY-----" in text:
            return serialization.load_pem_private_key(text, password=None).public_key()
        if b"BEGIN CERTIFICATE-----" in text:
            from cryptography.x509 import load_pem_x509_certificate

            return load_pem_x509_certificate(text).public_key()
        return serialization.load_pem_public_key(text)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"the PEM key cannot be read: {error}") from None


def signing_key(source: KeySource, algorithm: str | None) -> tuple[Any, str, str | None]:
    """Return the key to sign tokens with, its algorithm, and its name or None.

    Raises ValueError for a public key, and for an algorithm that does not fit.
    """
    import jwt

    algorithms = None if algorithm is None else [algorithm]
    (public, *_) = load_keys(source, algorithms)
    if isinstance(source, Mapping):
        for item in source.get("keys", [source]):
            key = _read_jwk(item, algorithms)
            if key is not None and (isinstance(key.material, bytes) or "d" in item):
                private = jwt.PyJWK({k: v for k, v in item.items() if k != "alg"}).key
                return private, key.algorithms[0], key.kid
        raise ValueError("this is a public key; tokens are signed with the private one")
    text = source.encode() if isinstance(source, str) else source
    if isinstance(public.material, bytes):
        return text, public.algorithms[0], None
    if b"PRIVATE KEY-----" not in text:
        raise ValueError("this is a public key; tokens are signed with the private one")
    return text, public.algorithms[0], None


def read_set(
    source: Mapping[str, Any], algorithms: Sequence[str] | None, *, strict: bool
) -> Iterable[Key]:
    """Yield the keys of a JWK set, or of one JWK (RFC 7517).

    With `strict`, for keys that an operator wrote, raises ValueError for an unusable key.
    Otherwise skips it, as a set may have keys for other purposes; also skips secrets, which are
    not secret behind a URL.
    """
    items = source.get("keys") if "keys" in source else [source]
    if not isinstance(items, list):
        raise ValueError("expected a JWK, or a JWK set: {'keys': […]}")
    for item in items[:MAX_KEYS]:
        try:
            key = _read_jwk(item, algorithms)
        except ValueError:
            if strict:
                raise
            continue
        if key is not None and (strict or not isinstance(key.material, bytes)):
            yield key


def _read_jwk(item: object, algorithms: Sequence[str] | None) -> Key | None:
    import jwt

    if not isinstance(item, Mapping) or not isinstance(item.get("kty"), str):
        raise ValueError("a JWK is an object with a `kty`")
    operations = item.get("key_ops")
    if item.get("use", "sig") != "sig":
        return None
    if isinstance(operations, list) and not {"verify", "sign"} & set(map(str, operations)):
        return None
    try:
        # Without `alg`, because we decide which algorithms it is for.
        material = jwt.PyJWK({k: v for k, v in item.items() if k != "alg"}).key
    except KeyError as error:
        raise ValueError(f"the JWK cannot be read: it has no `{error.args[0]}`") from None
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise ValueError(f"the JWK cannot be read: {error}") from None
    kid = item.get("kid")
    key = _pin(material, algorithms, own=item.get("alg"))
    return Key(key.material, key.algorithms, kid if isinstance(kid, str) else None)


def _kind(material: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

    if isinstance(material, bytes):
        return "a secret"
    if isinstance(material, rsa.RSAPublicKey):
        return "an RSA key"
    if isinstance(material, ec.EllipticCurvePublicKey):
        kind = _CURVES.get(material.curve.name)
        if kind is not None:
            return kind
    elif isinstance(material, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
        return "an Ed25519 or Ed448 key"
    raise ValueError(f"a key of type {type(material).__name__} cannot verify tokens")


def _pin(material: Any, algorithms: Sequence[str] | None, own: object = None) -> Key:
    """Pin a key to algorithms of its kind: its own, the requested, or the default."""
    if hasattr(material, "public_key"):
        material = material.public_key()
    kind = _kind(material)
    possible = KINDS[kind]
    if own is not None:
        if own not in possible:
            raise ValueError(f"the JWK's alg {own!r} cannot be used with {kind}")
        possible = (str(own),)
    if algorithms is None:
        chosen = possible[:1]
    else:
        chosen = tuple(name for name in possible if name in algorithms)
        if not chosen:
            raise ValueError(f"{', '.join(algorithms)} cannot be used with {kind}")
    if isinstance(material, bytes):
        for name in chosen:
            if len(material) < _SECRET_SIZE[name]:
                raise ValueError(
                    f"the secret has {len(material)} bytes; {name} needs {_SECRET_SIZE[name]} "
                    "(RFC 7518 §3.2). Make one: openssl rand -hex 32"
                )
    elif getattr(material, "key_size", _RSA_BITS) < _RSA_BITS and kind == "an RSA key":
        raise ValueError(f"the RSA key has {material.key_size} bits; it needs {_RSA_BITS}")
    return Key(material, chosen)


class StaticKeys:
    """Keys known from the start."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = keys

    async def find(self, kid: str | None, algorithm: str) -> Key | None:
        """Return a token's key, or None."""
        return choose(self._keys, kid, algorithm)

    def accept(self, algorithm: str) -> bool:
        """Return whether some key is for this algorithm."""
        return any(algorithm in key.algorithms for key in self._keys)


def choose(keys: Iterable[Key], kid: str | None, algorithm: str) -> Key | None:
    """Return a token's key: the one with its name, else the only one that fits."""
    fitting = [key for key in keys if algorithm in key.algorithms]
    if kid is not None:
        named = [key for key in fitting if key.kid == kid]
        if named:
            return named[0]
        # Keys without a name fit any name.
        fitting = [key for key in fitting if key.kid is None]
    return fitting[0] if len(fitting) == 1 else None


# Uncompressed: a kilobyte could inflate to a megabyte before it can be counted.
_ACCEPT: Final = {"Accept": "application/json", "Accept-Encoding": "identity"}


class RemoteKeys:
    """A JWK set behind one URL, fetched when needed and kept.

    The URL is the operator's, never a token's: a stranger's tokens can cause at most one fetch
    per `cooldown`. Keys older than `lifetime` are fetched again, and stay valid for a day while
    that fails. Times are in seconds.
    """

    # Seconds that old keys stay valid while the URL cannot be reached.
    STALE_TIME: Final = 86_400.0

    def __init__(
        self,
        url: str,
        algorithms: Sequence[str] | None,
        *,
        issuer: str,
        lifetime: float = 3_600.0,
        cooldown: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_algorithms(algorithms)
        if secret := [name for name in algorithms or () if name.startswith("HS")]:
            raise ValueError(f"{secret[0]} needs a secret, and keys behind a URL are public")
        _check_url(url)
        self.url = url
        self._algorithms = algorithms
        public = {name for name in ALGORITHMS if not name.startswith("HS")}
        # The algorithms a token may name: for any other, no fetch is worth it.
        self._possible = public if algorithms is None else public & set(algorithms)
        self._issuer = issuer
        self._lifetime = lifetime
        self._cooldown = cooldown
        self._clock = clock
        # By (issuer, kid), never the two joined: "a" + "bc" would equal "ab" + "c". At most
        # MAX_KEYS; keys without a kid are numbered.
        self._keys: dict[tuple[str, str | int], Key] = {}
        # When they were last fetched, and last tried to be. None before the first time.
        self._fetched: float | None = None
        self._tried: float | None = None
        # Shared by all clients that wait for it.
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, kid: str | None, algorithm: str) -> Key | None:
        """Return a token's key, or None. Raises KeysUnavailable."""
        if algorithm not in self._possible:
            return None
        now = self._clock()
        age = inf if self._fetched is None else now - self._fetched
        key = self._known(kid, algorithm)
        if key is None or age > self._lifetime:
            fetching = self._refresh(now)
            # A known key is used without waiting, unless it is very old.
            if fetching is not None and (key is None or age > 2 * self._lifetime):
                # One client that gives up must not cancel it for the others.
                await asyncio.shield(fetching)
                key = self._known(kid, algorithm)
        if self._fetched is None or now - self._fetched > self.STALE_TIME:
            raise KeysUnavailable
        return key

    def accept(self, algorithm: str) -> bool:
        """Return whether some key is for this algorithm."""
        return any(algorithm in key.algorithms for key in self._keys.values())

    def _known(self, kid: str | None, algorithm: str) -> Key | None:
        if kid is not None:
            key = self._keys.get((self._issuer, kid))
            if key is not None:
                return key if algorithm in key.algorithms else None
        return choose(self._keys.values(), kid, algorithm)

    def _refresh(self, now: float) -> asyncio.Task[None] | None:
        """Start a fetch and return it; None if one was tried within `cooldown`."""
        loop = asyncio.get_running_loop()
        if self._fetching is None or self._fetching.get_loop() is not loop:
            if self._tried is not None and now - self._tried < self._cooldown:
                return None
            self._tried = now
            self._fetching = loop.create_task(self._fetch(now))
        return self._fetching

    async def _fetch(self, now: float) -> None:
        import httpx
        import msgspec

        try:
            found = await self._download()
            keys = list(read_set(found, self._algorithms, strict=False))
            if not keys:
                raise ValueError("it has no key to verify signatures with")
        except (
            httpx.HTTPError,
            msgspec.MsgspecError,
            ValueError,
            RecursionError,
            OSError,
        ) as error:
            logger.warning(
                "the keys of %s cannot be fetched: %s", self.url, str(error) or type(error).__name__
            )
        else:
            self._keys = {
                (self._issuer, key.kid if key.kid is not None else number): key
                for number, key in enumerate(keys)
            }
            self._fetched = now
        finally:
            self._fetching = None

    async def _download(self) -> dict[str, Any]:
        import httpx
        import msgspec

        body = b""
        async with (
            asyncio.timeout(FETCH_TIME),
            # No redirects: somebody else would choose the URL. Without TLS, skip reading the
            # machine's certificates, which blocks the loop for 30 ms.
            httpx.AsyncClient(
                timeout=FETCH_TIME,
                follow_redirects=False,
                verify=urlsplit(self.url).scheme != "http",
            ) as client,
            client.stream("GET", self.url, headers=_ACCEPT) as response,
        ):
            if response.status_code != 200:
                raise ValueError(f"HTTP {response.status_code}")
            encoding = response.headers.get("content-encoding", "identity")
            if encoding.lower() not in ("", "identity"):
                raise ValueError(f"Content-Encoding {encoding[:32]!r}, which was not asked for")
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_KEY_SET:
                    raise ValueError(f"more than {MAX_KEY_SET} bytes")
        return msgspec.json.decode(body, type=dict[str, Any])


def _check_url(url: str) -> None:
    expected = f"a JWKS URL looks like https://HOST/.well-known/jwks.json, not {url!r}"
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(expected) from None
    host = parts.hostname
    if not host or parts.scheme not in ("http", "https"):
        raise ValueError(expected)
    if parts.scheme == "http" and not _is_loopback(host):
        logger.warning(
            "%s is fetched without TLS: anybody in between can choose the keys that tokens are "
            "verified with",
            url,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
