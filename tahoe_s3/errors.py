# SPDX-License-Identifier: GPL-2.0-or-later
"""What stops a node from starting: one class for each cause, one sentence for each class.

Every class here is a :class:`ConfigError`, which ``tahoe run`` prints as "Configuration error: ..." without a
traceback before it exits (allmydata/scripts/tahoe_run.py). A sentence names the key or file, says what is
wrong and what to write or do instead. None of them ever carries a secret: callers pass names, places and
codes only, and a URL is passed as the endpoint that config.py normalised, which can hold no password.

Those found without the network are raised by config.py; those that need the bucket's answer are raised by
server.open_storage and the store (class names from :class:`WrongRegion` on). docs/errors.rst explains each.
Nothing here has an owner or a thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from allmydata.util.configutil import UnknownConfigError


class ConfigError(UnknownConfigError):
    """A node that asks for cloud.s3 cannot start as configured; str() is one sentence for the operator."""


# Found in tahoe.cfg and private/, without the network.


class UnknownBackend(ConfigError):
    """`backend` names something that neither Tahoe-LAFS nor tahoe-s3 has."""

    def __init__(self, *, backend: str) -> None:
        super().__init__(
            f"[storage]backend in tahoe.cfg is '{backend}', which is not a known backend; write backend = "
            "cloud.s3 to keep shares in a bucket, or remove the line to keep them on disk."
        )


class UnknownKey(ConfigError):
    """An `s3.` key that does not exist, with the nearest one that does."""

    def __init__(self, *, key: str, instead: str) -> None:
        super().__init__(f"[storage]{key} in tahoe.cfg is not a key of tahoe-s3; {instead}.")


class KeysWithoutBackend(ConfigError):
    """`s3.` keys, but the node would keep its shares on disk."""

    def __init__(self, *, keys: Iterable[str]) -> None:
        names = ", ".join(sorted(keys))
        super().__init__(
            f"[storage] in tahoe.cfg has {names} but no backend = cloud.s3, so shares would go to the local "
            "disk; add the line backend = cloud.s3, or remove the s3. keys."
        )


class MissingKey(ConfigError):
    """A required key is missing or empty."""

    def __init__(self, *, key: str, example: str) -> None:
        super().__init__(
            f"[storage]{key} in tahoe.cfg is missing or empty, but backend = cloud.s3 needs it; add a line "
            f"such as {key} = {example}."
        )


class BadValue(ConfigError):
    """The value of a key cannot be used. `problem` follows "<key> in tahoe.cfg", `instead` is an order."""

    def __init__(self, *, key: str, problem: str, instead: str) -> None:
        super().__init__(f"[storage]{key} in tahoe.cfg {problem}; {instead}.")


class BadFile(ConfigError):
    """A file that the configuration needs is missing, empty, unreadable or holds the wrong thing."""

    def __init__(self, *, path: str, problem: str, instead: str) -> None:
        super().__init__(f"The file {path} {problem}; {instead}.")


class Conflict(ConfigError):
    """Two settings that cannot go together."""

    def __init__(self, *, key: str, why: str, instead: str) -> None:
        super().__init__(
            f"[storage]{key} in tahoe.cfg cannot be used together with backend = cloud.s3: {why}; {instead}."
        )


class UnsupportedTahoe(ConfigError):
    """The installed Tahoe-LAFS is not built as the plug-in needs it. `problem` follows "which"."""

    def __init__(self, *, found: str, problem: str, works: str) -> None:
        super().__init__(
            f"backend = cloud.s3 works with Tahoe-LAFS {works}, but Tahoe-LAFS {found} is installed, which "
            f"{problem}; install tahoe-lafs=={works}, or a newer tahoe-s3."
        )


class BrokenInstall(ConfigError):
    """The package or its C extension cannot be imported. `detail` is the interpreter's reason."""

    def __init__(self, *, detail: str) -> None:
        super().__init__(
            f"backend = cloud.s3 cannot be used, since tahoe-s3 does not load in this virtualenv ({detail}); "
            "install it again with pip install --force-reinstall --no-deps tahoe-s3."
        )


class NotPrepared(ConfigError):
    """A program built the node around create_client_from_config(), where the bucket is opened."""

    def __init__(self) -> None:
        super().__init__(
            "backend = cloud.s3 in tahoe.cfg needs a node that was made by "
            "allmydata.client.create_client_from_config, but this program made it in another way; "
            "start the node with tahoe run."
        )


# Found by asking the bucket, or by looking into the storage folder.


class WrongRegion(ConfigError):
    """The bucket lies in another region than `s3.region` says; `actual` is empty where the service keeps it."""

    def __init__(self, *, bucket: str, configured: str, actual: str) -> None:
        place, write = (f"in '{actual}'", actual) if actual else ("in another region", "<the bucket's region>")
        super().__init__(
            f"[storage]s3.region in tahoe.cfg is '{configured}', but the bucket '{bucket}' is {place}; "
            f"write s3.region = {write}."
        )


class NoSuchBucket(ConfigError):
    """The service answers, and says that there is no such bucket."""

    def __init__(self, *, bucket: str, url: str, region: str) -> None:
        super().__init__(
            f"[storage]s3.bucket in tahoe.cfg is '{bucket}', but {url} has no bucket of that name; create "
            f"it with `aws --endpoint-url {url} --region {region} s3 mb s3://{bucket}` or in your "
            "provider's console, or correct the name."
        )


class RefusedCredentials(ConfigError):
    """401 or 403 for the first requests. `code` is S3's, such as SignatureDoesNotMatch."""

    def __init__(self, *, bucket: str, url: str, code: str, access_key_id: str) -> None:
        cures = {
            "InvalidAccessKeyId": "correct s3.access_key_id in tahoe.cfg",
            "SignatureDoesNotMatch": "write the secret of this access key id into private/s3secret",
            "InvalidToken": "renew private/s3usertoken and private/s3producttoken",
            "ExpiredToken": "renew private/s3usertoken",
        }
        cure = cures.get(
            code,
            "allow this key to list the bucket and to get, put and delete its objects, or correct "
            "s3.access_key_id and private/s3secret",
        )
        super().__init__(
            f"The service at {url} refused access to the bucket '{bucket}' for s3.access_key_id "
            f"'{access_key_id}' ({code or 'no reason given'}); {cure}."
        )


class ObjectLocked(ConfigError):
    """Object lock would keep deleted and overwritten shares from being deleted."""

    def __init__(self, *, bucket: str) -> None:
        super().__init__(
            f"[storage]s3.bucket in tahoe.cfg names '{bucket}', which has object lock switched on, so "
            "shares could neither be overwritten nor deleted; use a bucket without object lock."
        )


class NotS3(ConfigError):
    """Something answered at `s3.url`, but it does not speak S3. `detail` says what came, in a few words."""

    def __init__(self, *, url: str, detail: str) -> None:
        super().__init__(
            f"[storage]s3.url in tahoe.cfg is {url}, but what answers there is not an S3 service "
            f"({detail}); write the address of the S3 service, such as s3.url = https://s3.amazonaws.com."
        )


class OwnedByAnother(ConfigError):
    """owner.json says that another node keeps its shares here, or below or above this prefix.

    `prefix` is where the mark lies, `owner` and `own` are node ids in base32, `since` is a time for people.
    """

    def __init__(self, *, bucket: str, prefix: str, owner: str, since: str, own: str) -> None:
        place = f"the bucket '{bucket}'" + (f" below the prefix '{prefix}'" if prefix else "")
        super().__init__(
            f"[storage]s3.bucket in tahoe.cfg names {place}, which belongs to the node {owner} (since "
            f"{since}), while this node is {own}; give each node a bucket or an s3.prefix of its own, or, "
            f"if that node is gone for good, delete the object {prefix}owner.json."
        )


class NewerLayout(ConfigError):
    """owner.json was written by a tahoe-s3 that lays the bucket out in a way this one does not know."""

    def __init__(self, *, bucket: str, found: object, known: int) -> None:
        super().__init__(
            f"[storage]s3.bucket in tahoe.cfg names '{bucket}', which is laid out in version {found}, while "
            f"this tahoe-s3 knows version {known}; install a newer tahoe-s3."
        )


class BadOwnerMark(ConfigError):
    """owner.json exists but is not what tahoe-s3 writes."""

    def __init__(self, *, bucket: str, key: str, problem: str) -> None:
        super().__init__(
            f"The object {key} in the bucket '{bucket}' is not an owner's mark of tahoe-s3 ({problem}); if "
            "nothing else uses this bucket and prefix, delete that object, else set another s3.bucket or "
            "s3.prefix in tahoe.cfg."
        )


class Unreachable(ConfigError):
    """No answer at the first start of a node, when only the bucket can say whether it holds shares."""

    def __init__(self, *, url: str, detail: str) -> None:
        super().__init__(
            f"The S3 service at {url} cannot be reached ({detail}), and a node that never ran before must "
            "ask it once; check s3.url in tahoe.cfg and the network, then start again."
        )


class UntrustedCertificate(ConfigError):
    """The certificate that https showed was refused, at the first start of a node. `detail` says why, `ca_bundle` is
    the file of s3.ca_bundle, if one is set.
    """

    def __init__(self, *, url: str, detail: str, ca_bundle: str | None) -> None:
        cure = (
            "if it was signed by an authority of your own, let s3.ca_bundle in tahoe.cfg name a file with that "
            "authority's certificate"
            if ca_bundle is None
            else f"the file that s3.ca_bundle in tahoe.cfg names, {ca_bundle}, must hold the certificate of the "
            "authority that signed it"
        )
        super().__init__(
            f"The certificate of the S3 service at {url} is not trusted ({detail}); {cure}, and it must be valid "
            "today for the host in s3.url."
        )


class DiskShares(ConfigError):
    """The storage folder holds shares of the disk backend, which would vanish from the grid."""

    def __init__(self, *, storage_dir: str, bucket: str, prefix: str) -> None:
        super().__init__(
            f"The folder {storage_dir} holds shares of the disk backend, which would vanish from the grid; "
            f"copy its shares folder to s3://{bucket}/{prefix}shares and move it away, or set another "
            "storage_dir in tahoe.cfg."
        )


class UnusableFolder(ConfigError):
    """The local storage folder, or what lies in it, cannot be worked with. `detail` says why."""

    def __init__(self, *, storage_dir: str, detail: str) -> None:
        super().__init__(
            f"The storage folder {storage_dir} cannot be used ({detail}). The node must be able to write there, and no "
            "other process may; index.sqlite, incoming and cache in it can be moved away while the node is stopped, "
            "since the bucket has all shares and leases."
        )


class NestedOwner(ConfigError):
    """A node keeps its shares below a longer prefix of the same bucket; prefixes that nest are the same place."""

    def __init__(self, *, bucket: str, key: str) -> None:
        super().__init__(
            f"[storage]s3.bucket in tahoe.cfg names '{bucket}', where another node has its mark at {key}, inside "
            "the place that this node would own; give each node an s3.prefix of its own, neither inside the other."
        )


class WrongClock(ConfigError):
    """The service refuses requests because this machine's clock differs by more than 15 minutes, even corrected."""

    def __init__(self, *, url: str, own_time_s: int, server_time_s: int | None) -> None:
        def show(time_s: int) -> str:
            return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time_s))

        theirs = "its own does not match" if server_time_s is None else f"its own says {show(server_time_s)}"
        super().__init__(
            f"The service at {url} refuses the time of this machine, whose clock says {show(own_time_s)} while "
            f"{theirs}; set this machine's clock (both must agree to 15 minutes)."
        )
