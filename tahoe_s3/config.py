# SPDX-License-Identifier: GPL-2.0-or-later
"""tahoe.cfg and private/ -> one frozen S3Config, or one sentence about what is wrong.

Owner: plugin.py calls these once at a node's start; nothing here is read again later. No network, no reactor.
Reads only tahoe.cfg (through allmydata.node._Config), private/s3secret, private/s3usertoken,
private/s3producttoken, and the file that s3.ca_bundle names. Errors are the classes of errors.py.
Sizes are in bytes.
Every key is described in docs/configuration.rst.
"""
from __future__ import annotations

import configparser
import difflib
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

from allmydata.util.abbreviate import parse_abbreviated_size
from allmydata.util.time_format import parse_date, parse_duration

from tahoe_s3 import errors
from tahoe_s3.prices import KEYS as PRICE_KEYS
from tahoe_s3.prices import Prices, read_prices

BACKEND = "cloud.s3"
STOCK_BACKEND = "disk"
SECTION = "storage"

DEFAULT_URL = "http://s3.amazonaws.com"
DEFAULT_REGION = "us-east-1"
DEFAULT_MAX_CONNECTIONS = 32
MAX_CONNECTIONS = 256
KIB = 1024
MIB = 1024 * KIB
DEFAULT_PART_SIZE_BYTES = 8 * MIB
MIN_PART_SIZE_BYTES = 64 * KIB
S3_MIN_PART_SIZE_BYTES = 5 * MIB
"""S3's own limit for every part but the last (S3 User Guide, "Amazon S3 multipart upload limits")."""
MAX_PART_SIZE_BYTES = 5 * 1024 * MIB
MIN_CAPACITY_BYTES = 1000 * 1000
"""Less is a size whose unit was forgotten."""
MAX_CAPACITY_BYTES = 2**62
"""Tahoe's clients take numbers below 2**64, SQLite's sums below 2**63."""
MAX_PREFIX_BYTES = 512
"""S3 keys have at most 1024 bytes; a share's key needs about 45 behind the prefix."""
MAX_SECRET_BYTES = 16 * KIB
"""STS session tokens have no stated limit; those in use stay far below this."""

KEYS = (
    "s3.access_key_id",
    "s3.addressing",
    "s3.bucket",
    "s3.ca_bundle",
    "s3.capacity",
    "s3.max_connections",
    "s3.part_size",
    "s3.prefix",
    *PRICE_KEYS,
    "s3.region",
    "s3.url",
)
_IN_PRIVATE = {
    "s3.secret": "private/s3secret",
    "s3.secret_key": "private/s3secret",
    "s3.secret_access_key": "private/s3secret",
    "s3.usertoken": "private/s3usertoken",
    "s3.user_token": "private/s3usertoken",
    "s3.session_token": "private/s3usertoken",
    "s3.producttoken": "private/s3producttoken",
    "s3.product_token": "private/s3producttoken",
}
"""What people write into tahoe.cfg though it is a secret, and where it belongs."""
_OTHER_NAMES = {
    "s3.endpoint": "s3.url",
    "s3.endpoint_url": "s3.url",
    "s3.host": "s3.url",
    "s3.key": "s3.access_key_id",
    "s3.key_id": "s3.access_key_id",
    "s3.path_style": "s3.addressing",
    "s3.container": "s3.bucket",
    "s3.verify": "s3.ca_bundle",
    "s3.chunk_size": "s3.part_size",
    "s3.limit": "s3.capacity",
    "s3.max_bytes": "s3.capacity",
    "s3.max_size": "s3.capacity",
    "s3.quota": "s3.capacity",
    "s3.size": "s3.capacity",
}
"""The names that other S3 programs use, where likeness of letters would not find ours."""

_DNS_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_DNS_BUCKET_WITH_DOTS = re.compile(r"(?=.{3,63}\Z)[a-z0-9][a-z0-9-]*(?:\.[a-z0-9-]*[a-z0-9])*")
_ANY_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")
_REGION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_PREFIX = re.compile(r"[A-Za-z0-9!_.*'()/=+@,-]*")
_ACCESS_KEY_ID = re.compile(r"[!-~]{1,256}")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\.?|\[[0-9A-Fa-f:.]+\]")
_AWS_HOST = re.compile(r"(?:.*\.)?amazonaws\.com(?:\.cn)?")
_AWS_REGION = re.compile(r"s3[.-](?:dualstack\.)?([a-z]{2}(?:-[a-z]+)+-\d+)\.amazonaws\.com(?:\.cn)?")


class NodeConfig(Protocol):
    """The part of allmydata.node._Config that is used here."""

    @property
    def config(self) -> configparser.ConfigParser: ...
    def get_config_path(self, *args: str) -> str: ...
    def get_private_path(self, *args: str) -> str: ...


@dataclass(frozen=True)
class S3Config:
    """What tahoe.cfg and private/ say about the bucket, checked. Secrets are not part of repr()."""

    access_key_id: str
    secret: bytes = field(repr=False)
    bucket: str
    url: str
    """scheme://host[:port], lower case, no trailing slash."""
    region: str
    region_is_explicit: bool
    """False: the service may name another one, which is then adopted."""
    prefix: str
    """Empty, or ends with "/"; put before every key."""
    path_style: bool
    """s3.addressing, with `auto` decided."""
    ca_bundle: Path | None
    max_connections: int
    part_size_bytes: int
    capacity_bytes: int | None = None
    """What shares may take of the bucket; None without a limit."""
    token: str | None = field(repr=False, default=None)
    """The value of x-amz-security-token: `user` or `user,product`; None without DevPay or STS."""
    prices: Prices = field(default_factory=Prices)
    warnings: tuple[str, ...] = ()
    """Sentences for the log, such as that https is wanted."""


@dataclass(frozen=True)
class NodeSettings:
    """What open_storage must know of the node beyond the bucket."""

    has_permutation_seed: bool
    """False: the node must know whether it has shares before it can start (errors.Unreachable otherwise)."""


def is_ours(option: str) -> bool:
    """Whether a key of [storage] is for this plug-in to judge, known or not."""
    return option == "backend" or option.startswith("s3.")


def wants_s3(config: NodeConfig) -> bool:
    """Whether [storage] asks for cloud.s3; raises for an unknown backend, and for s3. keys without it."""
    parser = config.config
    if not parser.has_section(SECTION):
        return False
    backend = _get(parser, "backend")
    if backend not in (None, STOCK_BACKEND, BACKEND):
        raise errors.UnknownBackend(backend=backend)
    keys = [option for option in parser.options(SECTION) if option.startswith("s3.")]
    for key in keys:
        if key not in KEYS:
            raise errors.UnknownKey(key=key, instead=_instead_of(key))
    if backend == BACKEND:
        return True
    if keys:
        raise errors.KeysWithoutBackend(keys=keys)
    return False


def read_s3_config(config: NodeConfig) -> S3Config:
    """Everything about the bucket. To be called only where wants_s3() said yes; raises errors.ConfigError."""
    parser = config.config
    _refuse_conflicts(parser)
    _check_expire(parser)
    warnings: list[str] = []
    url = _read_url(parser)
    access_key_id = _read_access_key_id(parser)
    bucket = _read_bucket(parser)
    region, region_is_explicit = _read_region(parser, url)
    path_style = _read_path_style(parser, url, bucket)
    prefix = _read_prefix(parser)
    ca_bundle = _read_ca_bundle(config, parser)
    max_connections = _read_max_connections(parser)
    part_size_bytes = _read_part_size(parser)
    capacity_bytes = _read_capacity(parser)
    secret = _read_secret(config, warnings)
    token = _read_token(config, warnings)

    if url.startswith("http:"):
        https = "https" + url[len("http") :]
        warnings.append(
            f"[storage]s3.url in tahoe.cfg is {url}: requests to the bucket travel unencrypted, and https "
            f"is wanted; write s3.url = {https} where the service offers it."
        )
        if ca_bundle is not None:
            warnings.append("[storage]s3.ca_bundle in tahoe.cfg has no effect, since s3.url is not https.")
    if part_size_bytes < S3_MIN_PART_SIZE_BYTES:
        warnings.append(
            f"[storage]s3.part_size in tahoe.cfg is {part_size_bytes} bytes: S3 itself refuses parts below "
            "5MiB, and only some other services take them."
        )
    return S3Config(
        access_key_id=access_key_id,
        secret=secret,
        bucket=bucket,
        url=url,
        region=region,
        region_is_explicit=region_is_explicit,
        prefix=prefix,
        path_style=path_style,
        ca_bundle=ca_bundle,
        max_connections=max_connections,
        part_size_bytes=part_size_bytes,
        capacity_bytes=capacity_bytes,
        token=token,
        prices=read_prices(lambda key: _get(parser, key)),
        warnings=tuple(warnings),
    )


def _get(parser: configparser.ConfigParser, key: str) -> str | None:
    """The value of a key of [storage], stripped; None where it is missing."""
    try:
        value = parser.get(SECTION, key, fallback=None)
    except configparser.InterpolationError:
        raise errors.BadValue(
            key=key,
            problem="has a % that tahoe.cfg takes for a reference to another key",
            instead="write %% for each %",
        ) from None
    return None if value is None else value.strip()


def _get_required(parser: configparser.ConfigParser, key: str, example: str) -> str:
    value = _get(parser, key)
    if not value:
        raise errors.MissingKey(key=key, example=example)
    return value


def _instead_of(key: str) -> str:
    """What to write in place of a key that does not exist, as an imperative."""
    if key in _IN_PRIVATE:
        return f"remove it and put the value into the file {_IN_PRIVATE[key]}"
    near = _OTHER_NAMES.get(key) or next(iter(difflib.get_close_matches(key, KEYS, n=1, cutoff=0.0)), KEYS[0])
    return f"write {near}, the nearest one that is, or remove the line"


def _refuse_conflicts(parser: configparser.ConfigParser) -> None:
    try:
        discard = parser.getboolean(SECTION, "debug_discard", fallback=False)
    except ValueError:
        discard = True
    if discard:
        raise errors.Conflict(
            key="debug_discard", why="it throws shares away on purpose", instead="remove one of the two lines"
        )
    if any(name.strip() for name in (_get(parser, "plugins") or "").split(",")):
        raise errors.Conflict(
            key="plugins",
            why="storage plugins call the disk backend's interface, which does not wait for a bucket",
            instead="remove one of the two lines",
        )


def _check_expire(parser: configparser.ConfigParser) -> None:
    """Tahoe's own keys, which its code reads for the storage server; here for a better sentence about what is wrong.

    As Tahoe's docs/garbage-collection.rst says, a key that belongs to the other mode is refused; its code ignores it.
    """
    on = _read_yes_or_no(parser, "expire.enabled", otherwise=False)
    for key in ("expire.immutable", "expire.mutable"):
        _read_yes_or_no(parser, key, otherwise=True)
    mode = _get(parser, "expire.mode")
    if mode is None and not on:
        mode = "age"
    if mode not in ("age", "cutoff-date"):
        raise errors.BadValue(
            key="expire.mode",
            problem="is missing, while expire.enabled is on" if mode is None else f"is '{mode}'",
            instead="write expire.mode = age, or expire.mode = cutoff-date together with expire.cutoff_date",
        )
    duration, date = _get(parser, "expire.override_lease_duration"), _get(parser, "expire.cutoff_date")
    if duration is not None and not _is_duration(duration):
        raise errors.BadValue(
            key="expire.override_lease_duration",
            problem=f"is '{duration}'",
            instead="write a number of days, months or years that is not 0, such as 60 days, 2mo or 1 year",
        )
    if mode == "cutoff-date" and (date is None or not _is_date(date)):
        raise errors.BadValue(
            key="expire.cutoff_date",
            problem="is missing, while expire.mode is cutoff-date" if date is None else f"is '{date}'",
            instead="write a date such as 2026-01-16",
        )
    stray = ("expire.override_lease_duration", duration) if mode == "cutoff-date" else ("expire.cutoff_date", date)
    if on and stray[1] is not None:
        raise errors.BadValue(
            key=stray[0],
            problem=f"has no meaning while expire.mode is {mode}",
            instead="remove the line, or change expire.mode",
        )


def _read_yes_or_no(parser: configparser.ConfigParser, key: str, *, otherwise: bool) -> bool:
    value = _get(parser, key)
    if value is None:
        return otherwise
    found = parser.BOOLEAN_STATES.get(value.lower())
    if found is None:
        raise errors.BadValue(key=key, problem=f"is '{value}'", instead="write true or false")
    return found


def _is_duration(text: str) -> bool:
    try:
        return int(parse_duration(text)) > 0
    except ValueError:
        return False


def _is_date(text: str) -> bool:
    try:
        return int(parse_date(text)) >= 0
    except ValueError:
        return False


def _read_access_key_id(parser: configparser.ConfigParser) -> str:
    value = _get_required(parser, "s3.access_key_id", "AKIAIOSFODNN7EXAMPLE")
    if not _ACCESS_KEY_ID.fullmatch(value):
        raise errors.BadValue(
            key="s3.access_key_id",
            problem="has a space or a character outside ASCII",
            instead="write only the access key id, such as AKIAIOSFODNN7EXAMPLE",
        )
    return value


def _read_bucket(parser: configparser.ConfigParser) -> str:
    value = _get_required(parser, "s3.bucket", "my-shares")
    if not _ANY_BUCKET.fullmatch(value):
        raise errors.BadValue(
            key="s3.bucket",
            problem=f"is '{value}', which cannot be the name of a bucket",
            instead="write the bare name, 3 to 63 lower-case letters, digits and hyphens, such as my-shares "
            "(a folder in the bucket goes to s3.prefix)",
        )
    return value


def _read_url(parser: configparser.ConfigParser) -> str:
    """The endpoint, normalised. The value is quoted in an error only where it cannot hold a password."""
    value = _get(parser, "s3.url") or DEFAULT_URL
    example = f"write only scheme, host and port, such as {DEFAULT_URL.replace('http:', 'https:')}"
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise _bad_url("has a port or an address in brackets that makes no sense", example) from None
    if "@" in value:
        raise _bad_url(
            "has a user name or password in it",
            f"{example}, and put the keys where they belong (s3.access_key_id and private/s3secret)",
        )
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise _bad_url(f"is '{value}', which does not begin with http:// or https://", example)
    if parts.query or "?" in value:
        raise _bad_url(f"is '{value}', which has a query", example)
    if parts.fragment or "#" in value:
        raise _bad_url(f"is '{value}', which has a # in it", example)
    if parts.path not in ("", "/"):
        raise _bad_url(
            f"is '{value}', which has a path",
            f"{example} (the bucket goes to s3.bucket, a folder in it to s3.prefix)",
        )
    host = _host_of(parts)
    if not _HOST.fullmatch(host) or port == 0:
        raise _bad_url(f"is '{value}', whose host or port makes no sense", example)
    default_port = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + ("" if port in (None, default_port) else f":{port}")


def _bad_url(problem: str, instead: str) -> errors.BadValue:
    return errors.BadValue(key="s3.url", problem=problem, instead=instead)


def _host_of(parts: SplitResult) -> str:
    """The host in lower case, an IPv6 address in its brackets."""
    host = parts.hostname or ""
    return f"[{host}]" if ":" in host else host


def _read_region(parser: configparser.ConfigParser, url: str) -> tuple[str, bool]:
    """The region, and whether the operator chose it. AWS's regional host names carry theirs."""
    value = _get(parser, "s3.region")
    if value:
        if not _REGION.fullmatch(value):
            raise errors.BadValue(
                key="s3.region",
                problem=f"is '{value}', which cannot be the name of a region",
                instead=f"write a name such as {DEFAULT_REGION}, or remove the line to ask the service",
            )
        return value, True
    in_host = _AWS_REGION.fullmatch(_host_of(urlsplit(url)))
    return (in_host.group(1) if in_host else DEFAULT_REGION), False


def _read_path_style(parser: configparser.ConfigParser, url: str, bucket: str) -> bool:
    """Whether the bucket goes into the path. `auto` puts it into the host on AWS only, where TLS allows."""
    value = _get(parser, "s3.addressing") or "auto"
    if value not in ("auto", "path", "virtual"):
        raise errors.BadValue(
            key="s3.addressing",
            problem=f"is '{value}'",
            instead="write auto, path (http://host/bucket/key) or virtual (http://bucket.host/key)",
        )
    host = _host_of(urlsplit(url))
    if value == "virtual":
        if not _DNS_BUCKET_WITH_DOTS.fullmatch(bucket) or _is_address(host):
            raise errors.BadValue(
                key="s3.addressing",
                problem=f"is 'virtual', but '{bucket}.{host}' is not a host name",
                instead="write s3.addressing = path",
            )
        return False
    if value == "path":
        return True
    return not (_AWS_HOST.fullmatch(host) and _goes_into_host(bucket, tls=url.startswith("https:")))


def _goes_into_host(bucket: str, *, tls: bool) -> bool:
    """The wildcard in AWS's certificate covers one label, so no bucket with dots over TLS."""
    return bool((_DNS_BUCKET if tls else _DNS_BUCKET_WITH_DOTS).fullmatch(bucket))


def _is_address(host: str) -> bool:
    return host.startswith("[") or bool(re.fullmatch(r"[0-9.]+", host))


def _read_prefix(parser: configparser.ConfigParser) -> str:
    value = _get(parser, "s3.prefix") or ""
    if not value:
        return ""
    if not _PREFIX.fullmatch(value):
        raise errors.BadValue(
            key="s3.prefix",
            problem=f"is '{value}', which has a character that not every service takes in a key",
            instead="write letters, digits, hyphens and slashes, such as grids/storage1",
        )
    names = value.rstrip("/").split("/")
    if any(name in ("", ".", "..") for name in names):
        raise errors.BadValue(
            key="s3.prefix",
            problem=f"is '{value}', which begins with a slash or has an empty, '.' or '..' part",
            instead="write names joined by single slashes, such as grids/storage1",
        )
    prefix = "/".join(names) + "/"
    if len(prefix) > MAX_PREFIX_BYTES:
        raise errors.BadValue(
            key="s3.prefix",
            problem=f"has {len(prefix)} bytes",
            instead=f"write at most {MAX_PREFIX_BYTES}, since S3's keys are limited",
        )
    return prefix


def _read_max_connections(parser: configparser.ConfigParser) -> int:
    value = _get(parser, "s3.max_connections")
    if not value:
        return DEFAULT_MAX_CONNECTIONS
    if not re.fullmatch(r"[0-9]{1,6}", value) or not 1 <= int(value) <= MAX_CONNECTIONS:
        raise errors.BadValue(
            key="s3.max_connections",
            problem=f"is '{value}'",
            instead=f"write a number from 1 to {MAX_CONNECTIONS}, such as {DEFAULT_MAX_CONNECTIONS}",
        )
    return int(value)


def _read_part_size(parser: configparser.ConfigParser) -> int:
    size_bytes = _read_size(
        parser, "s3.part_size", least=MIN_PART_SIZE_BYTES, most=MAX_PART_SIZE_BYTES,
        instead="write a size from 64KiB (S3 itself: 5MiB) to 5GiB, such as 8MiB",
    )  # fmt: skip
    return DEFAULT_PART_SIZE_BYTES if size_bytes is None else size_bytes


def _read_capacity(parser: configparser.ConfigParser) -> int | None:
    return _read_size(
        parser, "s3.capacity", least=MIN_CAPACITY_BYTES, most=MAX_CAPACITY_BYTES,
        instead="write a size from 1MB to 4EiB, such as 500GB, remove the line for no limit, or write readonly = "
        "true to take no shares",
    )  # fmt: skip


def _read_size(
    parser: configparser.ConfigParser, key: str, *, least: int, most: int, instead: str
) -> int | None:
    """Bytes; None where nothing is written. Sizes are written as in Tahoe's own reserved_space: 8MiB, 16MB, 8388608."""
    value = _get(parser, key)
    if not value:
        return None
    try:
        size_bytes: int | None = parse_abbreviated_size(value)
    except ValueError:
        size_bytes = None
    if size_bytes is None or not least <= size_bytes <= most:
        raise errors.BadValue(key=key, problem=f"is '{value}'", instead=instead)
    return size_bytes


def _read_ca_bundle(config: NodeConfig, parser: configparser.ConfigParser) -> Path | None:
    """The file of trusted certificates; a relative name is meant from the node's folder."""
    value = _get(parser, "s3.ca_bundle")
    if not value:
        return None
    path = Path(config.get_config_path(str(Path(value).expanduser())))
    instead = (
        "write the path of a PEM file with the certificates to trust, or remove the line for the system's"
    )

    def refuse(problem: str) -> errors.BadValue:
        return errors.BadValue(key="s3.ca_bundle", problem=f"names {path}, {problem}", instead=instead)

    try:
        path.read_bytes()
        ssl.create_default_context(cafile=str(path))
    except ssl.SSLError:
        raise refuse("which holds no certificate in PEM form") from None
    except OSError as error:
        raise refuse(f"which cannot be read ({error.strerror})") from None
    return path


def _read_private(config: NodeConfig, name: str, warnings: list[str]) -> str | None:
    """The one line of a private file without its line end; None where the file does not exist."""
    path = Path(config.get_private_path(name))
    shown = f"private/{name}"
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_SECRET_BYTES + 1)
            mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise errors.BadFile(
            path=shown, problem=f"cannot be read ({error.strerror})", instead="let the node's user read it"
        ) from None
    instead = "write one line into it, with nothing but the value"
    try:
        value = raw.decode("ascii").strip()
    except UnicodeDecodeError:
        raise errors.BadFile(path=shown, problem="has bytes outside ASCII", instead=instead) from None
    if not value:
        raise errors.BadFile(path=shown, problem="is empty", instead=instead)
    if len(raw) > MAX_SECRET_BYTES or not re.fullmatch(r"[!-~]+", value):
        raise errors.BadFile(path=shown, problem="holds more than one word", instead=instead)
    if mode & 0o004:
        warnings.append(f"The file {path} can be read by every user of this machine; run chmod 600 on it.")
    return value


def _read_secret(config: NodeConfig, warnings: list[str]) -> bytes:
    value = _read_private(config, "s3secret", warnings)
    if value is None:
        raise errors.BadFile(
            path="private/s3secret",
            problem="is missing",
            instead="write the secret that belongs to s3.access_key_id into it, and run chmod 600 on it",
        )
    return value.encode("ascii")


def _read_token(config: NodeConfig, warnings: list[str]) -> str | None:
    """DevPay's two tokens, or STS's session token as the user token; they are sent joined in one header."""
    user = _read_private(config, "s3usertoken", warnings)
    product = _read_private(config, "s3producttoken", warnings)
    if product is not None and user is None:
        raise errors.BadFile(
            path="private/s3producttoken",
            problem="exists, but private/s3usertoken does not",
            instead="write the user token into private/s3usertoken too, or remove private/s3producttoken",
        )
    if user is None or product is None:
        return user
    return f"{user},{product}"
