"""Who may call, and how often: API keys with names and limits, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trimtab.errors import ConfigError
from trimtab.server.api_errors import ApiError

MAX_KEYS = 1024
MAX_LIMIT = 10**12
HASHED = "sha256:"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_KEY = re.compile(r"[!-~]{1,512}\Z")  # what a header can carry
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


@dataclass(frozen=True)
class Key:
    """What is kept of a key: never the key itself."""

    name: str  # in logs and metrics
    digest: bytes
    requests_per_minute: int | None = None  # None: no limit
    tokens_per_minute: int | None = None


class Bucket:
    """A minute's allowance that fills up evenly. It may be overdrawn, and is then empty longer."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.limit = per_minute
        self._level = float(per_minute)
        self._updated = now

    def level(self, now: float) -> float:
        filled = self._level + max(0.0, now - self._updated) * self.limit / 60
        return min(float(self.limit), filled)

    def take(self, amount: float, now: float) -> None:
        self._level = self.level(now) - amount
        self._updated = now

    def seconds_until(self, level: float, now: float) -> float:
        return max(0.0, (level - self.level(now)) * 60 / self.limit)


class Account:
    """A key in use: what is left of its limits."""

    def __init__(self, key: Key, now: float) -> None:
        self.key = key
        self._requests = _bucket(key.requests_per_minute, now)
        self._tokens = _bucket(key.tokens_per_minute, now)

    def take_request(self, now: float) -> None:
        """Count one request. Raises ApiError 429 if none is left, or tokens are owed."""
        if self._requests is not None:
            wait = self._requests.seconds_until(1, now)
            if wait > 0:
                raise _limited("requests", self._requests.limit, wait)
        if self._tokens is not None:
            wait = self._tokens.seconds_until(0, now)
            if wait > 0:
                raise _limited("tokens", self._tokens.limit, wait)
        if self._requests is not None:
            self._requests.take(1, now)

    def take_prompt(self, num_tokens: int, now: float) -> None:
        """Count the tokens of a prompt. Raises ApiError 429 if they are more than are left."""
        bucket = self._tokens
        if bucket is None:
            return
        if num_tokens > bucket.limit:
            raise ApiError(
                429,
                f"The prompt has {num_tokens} tokens; this key has {bucket.limit} a minute.",
                type="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"x-should-retry": "false"},
            )
        wait = bucket.seconds_until(num_tokens, now)
        if wait > 0:
            raise _limited("tokens", bucket.limit, wait)
        bucket.take(num_tokens, now)

    def take_completion(self, num_tokens: int, now: float) -> None:
        """Count tokens that were generated: never refused, but owed."""
        if self._tokens is not None:
            self._tokens.take(num_tokens, now)

    def left(self, now: float) -> dict[str, float | None]:
        """Of each limit, now; below zero what is owed; None without a limit."""
        return {
            "requests": None if self._requests is None else round(self._requests.level(now), 1),
            "tokens": None if self._tokens is None else round(self._tokens.level(now), 1),
        }

    def headers(self, now: float) -> list[tuple[bytes, bytes]]:
        """OpenAI's x-ratelimit-*: limit, what is left, and when all of it is there again."""
        found = []
        for what, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                reset = bucket.seconds_until(bucket.limit, now)
                for name, value in (
                    ("limit", str(bucket.limit)),
                    ("remaining", str(max(0, int(bucket.level(now))))),
                    ("reset", f"{reset:.3f}s"),
                ):
                    found.append((f"x-ratelimit-{name}-{what}".encode(), value.encode()))
        return found


class KeyRing:
    """All keys of a server."""

    def __init__(self, keys: Iterable[Key], now: float) -> None:
        self._accounts = [Account(key, now) for key in keys]

    def __len__(self) -> int:
        return len(self._accounts)

    def __iter__(self) -> Iterator[Account]:
        return iter(self._accounts)

    def find(self, given: bytes) -> Account | None:
        """Whose key this is. Looks at every key, however many have matched."""
        digest = hashlib.sha256(given).digest()
        found = None
        for account in self._accounts:
            if hmac.compare_digest(account.key.digest, digest):
                found = account
        return found


def read_keys(path: Path) -> list[Key]:
    """The keys of a file: lines of NAME KEY [REQUESTS_PER_MINUTE [TOKENS_PER_MINUTE]].

    KEY is the key, or sha256: and the hex digest of it; a limit may be -, none. Empty lines and
    those that start with # do not count. Raises ConfigError, which never quotes a key, and for a
    file with plain keys that others on this machine can read.
    """
    try:
        text = path.read_text("utf-8")
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"api_key_file {path}: {reason}") from None
    keys: list[Key] = []
    is_plain = False
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        where = f"api_key_file {path}, line {number}"
        if not 2 <= len(fields) <= 4:
            raise ConfigError(
                f"{where}: must be NAME KEY [REQUESTS_PER_MINUTE [TOKENS_PER_MINUTE]]"
            )
        is_plain |= not fields[1].startswith(HASHED)
        keys.append(
            Key(
                _name(fields[0], where),
                _digest(fields[1], where),
                *(_limit(value, where) for value in fields[2:]),
            )
        )
    if is_plain and mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigError(
            f"api_key_file {path}: everybody on this machine can read its keys;"
            " chmod 600 it, or keep sha256: digests in it"
        )
    if not keys:
        raise ConfigError(f"api_key_file {path}: there is no key in it")
    return keys


def make_keys(plain: str | None, file: str | None) -> list[Key]:
    """The keys of a server: one given as it is, named `default`, and those of a file. Raises
    ConfigError for keys or names that come twice, and for more than MAX_KEYS."""
    keys = [] if plain is None else [Key("default", _digest(plain, "api_key"))]
    if file is not None:
        keys += read_keys(Path(file))
    if len(keys) > MAX_KEYS:
        raise ConfigError(f"{len(keys)} API keys: at most {MAX_KEYS}")
    for kind, num_different in (
        ("names", len({key.name for key in keys})),
        ("keys", len({key.digest for key in keys})),
    ):
        if num_different < len(keys):
            raise ConfigError(f"API keys: two {kind} are the same")
    return keys


def _name(name: str, where: str) -> str:
    if not _NAME.match(name):
        raise ConfigError(f"{where}: a name is 1 to 64 letters, digits, dots, dashes, underscores")
    return name


def _digest(key: str, where: str) -> bytes:
    if key.startswith(HASHED):
        hexadecimal = key.removeprefix(HASHED).lower()
        if not _DIGEST.match(hexadecimal):
            raise ConfigError(f"{where}: after sha256: there must be 64 hexadecimal digits")
        return bytes.fromhex(hexadecimal)
    if not _KEY.match(key):
        raise ConfigError(f"{where}: a key is 1 to 512 visible ASCII characters, without spaces")
    return digest_of(key)


def _limit(value: str, where: str) -> int | None:
    if value == "-":
        return None
    if not (value.isascii() and value.isdigit() and 0 < int(value[:20]) <= MAX_LIMIT):
        raise ConfigError(f"{where}: a limit is a number above 0, or -")
    return int(value)


def _bucket(per_minute: int | None, now: float) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute, now)


def _limited(what: str, limit: int, wait: float) -> ApiError:
    seconds = max(1, math.ceil(wait))
    return ApiError(
        429,
        f"This key's limit of {limit} {what} a minute is reached; try again in {seconds} s.",
        type="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(seconds)},
    )
