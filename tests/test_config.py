# SPDX-License-Identifier: GPL-2.0-or-later
"""tahoe.cfg and private/ -> S3Config: every key, every default, and the sentence for all that is wrong."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from allmydata import client
from allmydata.util.configutil import UnknownConfigError
from hypothesis import given
from hypothesis import strategies as st

from tahoe_s3 import _hook, config, errors

_hook.register()

GOOD = {
    "backend": "cloud.s3",
    "s3.access_key_id": "AKIAIOSFODNN7EXAMPLE",
    "s3.bucket": "my-shares",
}
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


class NodeFolder:
    """A node's folder with a [storage] section, and the files of private/."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.private = folder / "private"
        self.private.mkdir()
        self.write_private("s3secret", SECRET + "\n")

    def write_private(self, name: str, content: str | bytes, mode: int = 0o600) -> None:
        path = self.private / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)

    def config(self, storage: dict[str, str | None]) -> config.NodeConfig:
        lines = [f"{key} = {value}" for key, value in storage.items() if value is not None]
        (self.folder / "tahoe.cfg").write_text("\n".join(["[storage]", *lines, ""]))
        found: config.NodeConfig = client.read_config(str(self.folder), "client.port")
        return found

    def read(self, **changes: str | None) -> config.S3Config:
        """`bucket="x"` sets s3.bucket, `stock_plugins="x"` sets plugins; None leaves a key out."""
        storage: dict[str, str | None] = dict(GOOD)
        for name, value in changes.items():
            stock = name == "backend" or name.startswith("stock_")
            storage[name.replace("stock_", "") if stock else f"s3.{name}"] = value
        found = self.config(storage)
        assert config.wants_s3(found)
        return config.read_s3_config(found)


@pytest.fixture
def node(tmp_path: Path) -> NodeFolder:
    return NodeFolder(tmp_path)


def test_the_defaults(node: NodeFolder) -> None:
    s3 = node.read()
    assert s3.access_key_id == "AKIAIOSFODNN7EXAMPLE"
    assert s3.secret == SECRET.encode()
    assert s3.token is None
    assert s3.bucket == "my-shares"
    assert s3.url == "http://s3.amazonaws.com"
    assert (s3.region, s3.region_is_explicit) == ("us-east-1", False)
    assert s3.prefix == ""
    assert s3.path_style is False
    assert s3.ca_bundle is None
    assert s3.max_connections == 32
    assert s3.part_size_bytes == 8 * 1024 * 1024


def test_every_key(node: NodeFolder) -> None:
    bundle = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    s3 = node.read(
        url="https://Store.Example:8333/",
        region="eu-central-1",
        prefix="grids/one",
        addressing="path",
        ca_bundle=bundle,
        max_connections="8",
        part_size="16MiB",
    )
    assert s3.url == "https://store.example:8333"
    assert (s3.region, s3.region_is_explicit) == ("eu-central-1", True)
    assert s3.prefix == "grids/one/"
    assert s3.path_style is True
    assert s3.ca_bundle == Path(bundle)
    assert s3.max_connections == 8
    assert s3.part_size_bytes == 16 * 1024 * 1024
    assert s3.warnings == ()


def test_keys_are_all_described() -> None:
    text = (Path(__file__).parent.parent / "docs" / "configuration.rst").read_text()
    for key in (*config.KEYS, "backend", "private/s3secret", "private/s3usertoken", "private/s3producttoken"):
        assert f"``{key}``" in text, key


@pytest.mark.parametrize(
    ("url", "normalised"),
    [
        ("http://s3.amazonaws.com:80", "http://s3.amazonaws.com"),
        ("https://s3.amazonaws.com:443/", "https://s3.amazonaws.com"),
        ("HTTPS://S3.Amazonaws.COM", "https://s3.amazonaws.com"),
        ("http://127.0.0.1:8333", "http://127.0.0.1:8333"),
        ("http://[::1]:9000", "http://[::1]:9000"),
        ("https://localhost", "https://localhost"),
    ],
)
def test_url_is_normalised(node: NodeFolder, url: str, normalised: str) -> None:
    assert node.read(url=url).url == normalised


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://s3.eu-west-1.amazonaws.com", "eu-west-1"),
        ("https://s3-eu-west-1.amazonaws.com", "eu-west-1"),
        ("https://s3.dualstack.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("https://s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("https://s3.amazonaws.com", "us-east-1"),
        ("https://s3.eu-west-1.example.com", "us-east-1"),
    ],
)
def test_region_from_the_host_name(node: NodeFolder, url: str, region: str) -> None:
    s3 = node.read(url=url)
    assert (s3.region, s3.region_is_explicit) == (region, False)


@pytest.mark.parametrize(
    ("addressing", "url", "bucket", "path_style"),
    [
        (None, "https://s3.amazonaws.com", "my-shares", False),
        (None, "https://s3.eu-west-1.amazonaws.com", "my-shares", False),
        (None, "https://s3.amazonaws.com", "my.shares", True),
        (None, "http://s3.amazonaws.com", "my.shares", False),
        (None, "http://s3.amazonaws.com", "My_Shares", True),
        ("auto", "https://amazonaws.com.evil.example", "my-shares", True),
        ("auto", "https://store.example", "my-shares", True),
        ("path", "https://s3.amazonaws.com", "my-shares", True),
        ("virtual", "https://store.example", "my-shares", False),
        ("virtual", "https://store.example", "my.shares", False),
    ],
)
def test_addressing(
    node: NodeFolder, addressing: str | None, url: str, bucket: str, path_style: bool
) -> None:
    assert node.read(addressing=addressing, url=url, bucket=bucket).path_style is path_style


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("5MiB", 5 << 20), ("64KiB", 64 << 10), ("10MB", 10_000_000), ("8388608", 8 << 20), ("5gib", 5 << 30)],
)
def test_part_size(node: NodeFolder, text: str, size_bytes: int) -> None:
    assert node.read(part_size=text).part_size_bytes == size_bytes


@pytest.mark.parametrize(
    ("user", "product", "token"),
    [
        (None, None, None),
        ("{UserToken}AAAH==\n", None, "{UserToken}AAAH=="),
        ("{UserToken}AAAH==\r\n", "{ProductToken}QQ==\n\n", "{UserToken}AAAH==,{ProductToken}QQ=="),
    ],
)
def test_devpay_tokens(node: NodeFolder, user: str | None, product: str | None, token: str | None) -> None:
    if user is not None:
        node.write_private("s3usertoken", user)
    if product is not None:
        node.write_private("s3producttoken", product)
    assert node.read().token == token


def test_secrets_are_not_in_repr(node: NodeFolder) -> None:
    node.write_private("s3usertoken", "very-secret-token")
    shown = repr(node.read())
    assert SECRET not in shown
    assert "very-secret-token" not in shown


def test_nodes_without_backend_are_left_alone(node: NodeFolder) -> None:
    assert not config.wants_s3(node.config({}))
    assert not config.wants_s3(node.config({"backend": "disk", "reserved_space": "1G"}))
    (node.folder / "tahoe.cfg").write_text("[node]\n")
    assert not config.wants_s3(client.read_config(str(node.folder), "client.port"))


def test_warnings(node: NodeFolder) -> None:
    node.write_private("s3secret", SECRET, mode=0o644)
    s3 = node.read(part_size="1MiB")
    assert s3.warnings == (
        f"The file {node.private / 's3secret'} can be read by every user of this machine; run chmod 600 on "
        "it.",
        "[storage]s3.url in tahoe.cfg is http://s3.amazonaws.com: requests to the bucket travel "
        "unencrypted, and https is wanted; write s3.url = https://s3.amazonaws.com where the service "
        "offers it.",
        "[storage]s3.part_size in tahoe.cfg is 1048576 bytes: S3 itself refuses parts below 5MiB, and only "
        "some other services take them.",
    )


def refused(node: NodeFolder, **changes: str | None) -> str:
    with pytest.raises(errors.ConfigError) as caught:
        node.read(**changes)
    assert isinstance(caught.value, UnknownConfigError)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def test_unknown_backend(node: NodeFolder) -> None:
    assert refused(node, backend="cloud.s4") == (
        "[storage]backend in tahoe.cfg is 'cloud.s4', which is not a known backend; write backend = "
        "cloud.s3 to keep shares in a bucket, or remove the line to keep them on disk."
    )


@pytest.mark.parametrize(
    ("key", "instead"),
    [
        ("buket", "write s3.bucket, the nearest one that is, or remove the line"),
        ("access_key", "write s3.access_key_id, the nearest one that is, or remove the line"),
        ("endpoint", "write s3.url, the nearest one that is, or remove the line"),
        ("partsize", "write s3.part_size, the nearest one that is, or remove the line"),
        ("secret", "remove it and put the value into the file private/s3secret"),
        ("usertoken", "remove it and put the value into the file private/s3usertoken"),
    ],
)
def test_unknown_key(node: NodeFolder, key: str, instead: str) -> None:
    assert refused(node, **{key: "hunter2"}) == (
        f"[storage]s3.{key} in tahoe.cfg is not a key of tahoe-s3; {instead}."
    )


def test_keys_without_backend(node: NodeFolder) -> None:
    for backend in (None, "disk"):
        assert refused(node, backend=backend) == (
            "[storage] in tahoe.cfg has s3.access_key_id, s3.bucket but no backend = cloud.s3, so shares "
            "would go to the local disk; add the line backend = cloud.s3, or remove the s3. keys."
        )


def test_an_unknown_stock_key_is_still_refused_in_stock_words(node: NodeFolder) -> None:
    with pytest.raises(UnknownConfigError) as caught:
        node.config({**GOOD, "bakend": "x"})
    assert type(caught.value) is UnknownConfigError
    assert str(caught.value).endswith("section [storage] contains unknown option 'bakend'")


@pytest.mark.parametrize(
    ("key", "example"), [("access_key_id", "AKIAIOSFODNN7EXAMPLE"), ("bucket", "my-shares")]
)
@pytest.mark.parametrize("value", [None, "", "   "])
def test_required_keys(node: NodeFolder, key: str, example: str, value: str | None) -> None:
    assert refused(node, **{key: value}) == (
        f"[storage]s3.{key} in tahoe.cfg is missing or empty, but backend = cloud.s3 needs it; add a line "
        f"such as s3.{key} = {example}."
    )


URL_EXAMPLE = "write only scheme, host and port, such as https://s3.amazonaws.com"


@pytest.mark.parametrize(
    ("url", "problem", "instead"),
    [
        (
            "s3.amazonaws.com",
            "is 's3.amazonaws.com', which does not begin with http:// or https://",
            URL_EXAMPLE,
        ),
        (
            "ftp://x.example",
            "is 'ftp://x.example', which does not begin with http:// or https://",
            URL_EXAMPLE,
        ),
        ("http://", "is 'http://', which does not begin with http:// or https://", URL_EXAMPLE),
        (
            "http://h.example/bucket",
            "is 'http://h.example/bucket', which has a path",
            f"{URL_EXAMPLE} (the bucket goes to s3.bucket, a folder in it to s3.prefix)",
        ),
        ("http://h.example?x=1", "is 'http://h.example?x=1', which has a query", URL_EXAMPLE),
        ("http://h.example/#x", "is 'http://h.example/#x', which has a # in it", URL_EXAMPLE),
        ("http://h.example:99999", "has a port or an address in brackets that makes no sense", URL_EXAMPLE),
        ("http://h.example:x", "has a port or an address in brackets that makes no sense", URL_EXAMPLE),
        ("http://h.example:0", "is 'http://h.example:0', whose host or port makes no sense", URL_EXAMPLE),
        ("http://h example", "is 'http://h example', whose host or port makes no sense", URL_EXAMPLE),
        (
            "http://AKIA:hunter2@h.example",
            "has a user name or password in it",
            f"{URL_EXAMPLE}, and put the keys where they belong (s3.access_key_id and private/s3secret)",
        ),
    ],
)
def test_bad_url(node: NodeFolder, url: str, problem: str, instead: str) -> None:
    sentence = refused(node, url=url)
    assert sentence == f"[storage]s3.url in tahoe.cfg {problem}; {instead}."
    assert "hunter2" not in sentence


@pytest.mark.parametrize(
    ("key", "value", "problem", "instead"),
    [
        (
            "access_key_id",
            "AKIA FOO",
            "has a space or a character outside ASCII",
            "write only the access key id, such as AKIAIOSFODNN7EXAMPLE",
        ),
        (
            "bucket",
            "my/shares",
            "is 'my/shares', which cannot be the name of a bucket",
            "write the bare name, 3 to 63 lower-case letters, digits and hyphens, such as my-shares (a "
            "folder in the bucket goes to s3.prefix)",
        ),
        (
            "region",
            "eu west",
            "is 'eu west', which cannot be the name of a region",
            "write a name such as us-east-1, or remove the line to ask the service",
        ),
        (
            "addressing",
            "host",
            "is 'host'",
            "write auto, path (http://host/bucket/key) or virtual (http://bucket.host/key)",
        ),
        ("max_connections", "0", "is '0'", "write a number from 1 to 256, such as 32"),
        ("max_connections", "257", "is '257'", "write a number from 1 to 256, such as 32"),
        ("max_connections", "many", "is 'many'", "write a number from 1 to 256, such as 32"),
        ("part_size", "1KiB", "is '1KiB'", "write a size from 64KiB (S3 itself: 5MiB) to 5GiB, such as 8MiB"),
        ("part_size", "6GiB", "is '6GiB'", "write a size from 64KiB (S3 itself: 5MiB) to 5GiB, such as 8MiB"),
        ("part_size", "big", "is 'big'", "write a size from 64KiB (S3 itself: 5MiB) to 5GiB, such as 8MiB"),
        (
            "prefix",
            "/a",
            "is '/a', which begins with a slash or has an empty, '.' or '..' part",
            "write names joined by single slashes, such as grids/storage1",
        ),
        (
            "prefix",
            "a/../b",
            "is 'a/../b', which begins with a slash or has an empty, '.' or '..' part",
            "write names joined by single slashes, such as grids/storage1",
        ),
        (
            "prefix",
            "grün",
            "is 'grün', which has a character that not every service takes in a key",
            "write letters, digits, hyphens and slashes, such as grids/storage1",
        ),
        (
            "prefix",
            "p" * 512,
            "has 513 bytes",
            "write at most 512, since S3's keys are limited",
        ),
        (
            "bucket",
            "50%(off)",
            "has a % that tahoe.cfg takes for a reference to another key",
            "write %% for each %",
        ),
        (
            "url",
            "http://h.example/%2F",
            "has a % that tahoe.cfg takes for a reference to another key",
            "write %% for each %",
        ),
    ],
)
def test_bad_value(node: NodeFolder, key: str, value: str, problem: str, instead: str) -> None:
    assert refused(node, **{key: value}) == f"[storage]s3.{key} in tahoe.cfg {problem}; {instead}."


def test_virtual_addressing_needs_a_host_name(node: NodeFolder) -> None:
    assert refused(node, addressing="virtual", url="http://127.0.0.1:8333") == (
        "[storage]s3.addressing in tahoe.cfg is 'virtual', but 'my-shares.127.0.0.1' is not a host name; "
        "write s3.addressing = path."
    )
    assert "'My_Shares.s3.amazonaws.com' is not a host name" in refused(
        node, addressing="virtual", bucket="My_Shares"
    )


CA_INSTEAD = (
    "write the path of a PEM file with the certificates to trust, or remove the line for the system's"
)


def test_ca_bundle(node: NodeFolder) -> None:
    path = node.folder / "ca.pem"
    start = f"[storage]s3.ca_bundle in tahoe.cfg names {path}, "
    assert refused(node, ca_bundle="ca.pem") == (
        f"{start}which cannot be read (No such file or directory); {CA_INSTEAD}."
    )
    path.write_text("this is no certificate\n")
    assert (
        refused(node, ca_bundle="ca.pem") == f"{start}which holds no certificate in PEM form; {CA_INSTEAD}."
    )
    path.unlink()
    path.mkdir()
    assert refused(node, ca_bundle="ca.pem") == f"{start}which cannot be read (Is a directory); {CA_INSTEAD}."


ONE_LINE = "write one line into it, with nothing but the value"


@pytest.mark.parametrize("name", ["s3secret", "s3usertoken", "s3producttoken"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"two words\n", "holds more than one word"),
        (b"one\ntwo\n", "holds more than one word"),
        ("gr\u00fcn".encode(), "has bytes outside ASCII"),
        (b"x" * 20_000, "holds more than one word"),
    ],
)
def test_private_files(node: NodeFolder, name: str, content: bytes, problem: str) -> None:
    node.write_private("s3usertoken", "token")
    node.write_private(name, content)
    assert refused(node) == f"The file private/{name} {problem}; {ONE_LINE}."


def test_missing_secret(node: NodeFolder) -> None:
    (node.private / "s3secret").unlink()
    assert refused(node) == (
        "The file private/s3secret is missing; write the secret that belongs to s3.access_key_id into it, "
        "and run chmod 600 on it."
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_secret(node: NodeFolder) -> None:
    node.write_private("s3secret", SECRET, mode=0)
    assert refused(node) == (
        "The file private/s3secret cannot be read (Permission denied); let the node's user read it."
    )


def test_secret_is_a_folder(node: NodeFolder) -> None:
    (node.private / "s3secret").unlink()
    (node.private / "s3secret").mkdir()
    assert refused(node) == (
        "The file private/s3secret cannot be read (Is a directory); let the node's user read it."
    )


def test_producttoken_without_usertoken(node: NodeFolder) -> None:
    node.write_private("s3producttoken", "token")
    assert refused(node) == (
        "The file private/s3producttoken exists, but private/s3usertoken does not; write the user token "
        "into private/s3usertoken too, or remove private/s3producttoken."
    )


def test_conflicts(node: NodeFolder) -> None:
    assert refused(node, stock_debug_discard="true") == (
        "[storage]debug_discard in tahoe.cfg cannot be used together with backend = cloud.s3: it throws "
        "shares away on purpose; remove one of the two lines."
    )
    assert refused(node, stock_plugins="privatestorageio-zkapauthz-v2") == (
        "[storage]plugins in tahoe.cfg cannot be used together with backend = cloud.s3: storage plugins "
        "call the disk backend's interface, which does not wait for a bucket; remove one of the two lines."
    )
    assert node.read(stock_debug_discard="false", stock_plugins="").bucket == "my-shares"


NETWORK_ERRORS: list[tuple[Callable[[], errors.ConfigError], str]] = [
    (
        lambda: errors.WrongRegion(bucket="b", configured="us-east-1", actual="eu-west-1"),
        "[storage]s3.region in tahoe.cfg is 'us-east-1', but the bucket 'b' is in 'eu-west-1'; write "
        "s3.region = eu-west-1.",
    ),
    (
        lambda: errors.WrongRegion(bucket="b", configured="us-east-1", actual=""),
        "[storage]s3.region in tahoe.cfg is 'us-east-1', but the bucket 'b' is in another region; "
        "write s3.region = <the bucket's region>.",
    ),
    (
        lambda: errors.NestedOwner(bucket="b", key="p/q/owner.json"),
        "[storage]s3.bucket in tahoe.cfg names 'b', where another node has its mark at p/q/owner.json, inside the "
        "place that this node would own; give each node an s3.prefix of its own, neither inside the other.",
    ),
    (
        lambda: errors.WrongClock(url="https://h", own_time_s=1767323045, server_time_s=1767330245),
        "The service at https://h refuses the time of this machine, whose clock says 2026-01-02 03:04:05 UTC while "
        "its own says 2026-01-02 05:04:05 UTC; set this machine's clock (both must agree to 15 minutes).",
    ),
    (
        lambda: errors.NoSuchBucket(bucket="b", url="https://h", region="r1"),
        "[storage]s3.bucket in tahoe.cfg is 'b', but https://h has no bucket of that name; create it with "
        "`aws --endpoint-url https://h --region r1 s3 mb s3://b` or in your provider's console, or correct "
        "the name.",
    ),
    (
        lambda: errors.RefusedCredentials(
            bucket="b", url="https://h", code="SignatureDoesNotMatch", access_key_id="AKIA"
        ),
        "The service at https://h refused access to the bucket 'b' for s3.access_key_id 'AKIA' "
        "(SignatureDoesNotMatch); write the secret of this access key id into private/s3secret.",
    ),
    (
        lambda: errors.RefusedCredentials(bucket="b", url="https://h", code="", access_key_id="AKIA"),
        "The service at https://h refused access to the bucket 'b' for s3.access_key_id 'AKIA' (no reason "
        "given); allow this key to list the bucket and to get, put and delete its objects, or correct "
        "s3.access_key_id and private/s3secret.",
    ),
    (
        lambda: errors.ObjectLocked(bucket="b"),
        "[storage]s3.bucket in tahoe.cfg names 'b', which has object lock switched on, so shares could "
        "neither be overwritten nor deleted; use a bucket without object lock.",
    ),
    (
        lambda: errors.NotS3(url="http://h", detail="200 and a page of HTML"),
        "[storage]s3.url in tahoe.cfg is http://h, but what answers there is not an S3 service (200 and a "
        "page of HTML); write the address of the S3 service, such as s3.url = https://s3.amazonaws.com.",
    ),
    (
        lambda: errors.OwnedByAnother(
            bucket="b", prefix="p/", owner="aaa", since="2026-01-02 03:04:05Z", own="bbb"
        ),
        "[storage]s3.bucket in tahoe.cfg names the bucket 'b' below the prefix 'p/', which belongs to the "
        "node aaa (since 2026-01-02 03:04:05Z), while this node is bbb; give each node a bucket or an "
        "s3.prefix of its own, or, if that node is gone for good, delete the object p/owner.json.",
    ),
    (
        lambda: errors.NewerLayout(bucket="b", found=2, known=1),
        "[storage]s3.bucket in tahoe.cfg names 'b', which is laid out in version 2, while this tahoe-s3 "
        "knows version 1; install a newer tahoe-s3.",
    ),
    (
        lambda: errors.BadOwnerMark(bucket="b", key="owner.json", problem="no JSON"),
        "The object owner.json in the bucket 'b' is not an owner's mark of tahoe-s3 (no JSON); if nothing "
        "else uses this bucket and prefix, delete that object, else set another s3.bucket or s3.prefix in "
        "tahoe.cfg.",
    ),
    (
        lambda: errors.Unreachable(url="http://h", detail="connection refused"),
        "The S3 service at http://h cannot be reached (connection refused), and a node that never ran "
        "before must ask it once; check s3.url in tahoe.cfg and the network, then start again.",
    ),
    (
        lambda: errors.UntrustedCertificate(url="https://h", detail="self-signed certificate", ca_bundle=None),
        "The certificate of the S3 service at https://h is not trusted (self-signed certificate); if it was signed by "
        "an authority of your own, let s3.ca_bundle in tahoe.cfg name a file with that authority's certificate, and it "
        "must be valid today for the host in s3.url.",
    ),
    (
        lambda: errors.DiskShares(storage_dir="/n/storage", bucket="b", prefix="p/"),
        "The folder /n/storage holds shares of the disk backend, which would vanish from the grid; copy "
        "its shares folder to s3://b/p/shares and move it away, or set another storage_dir in tahoe.cfg.",
    ),
]


@pytest.mark.parametrize(("make", "sentence"), NETWORK_ERRORS)
def test_sentences_of_what_the_bucket_says(make: Callable[[], errors.ConfigError], sentence: str) -> None:
    assert str(make()) == sentence


@given(st.text(max_size=40))
def test_any_url_is_read_or_refused_in_one_sentence(text: str) -> None:
    import configparser

    parser = configparser.ConfigParser(interpolation=None)
    parser.read_dict({"storage": {"s3.url": text}})
    try:
        url = config._read_url(parser)
    except errors.BadValue as error:
        assert str(error).startswith("[storage]s3.url in tahoe.cfg ")
    else:
        assert url.startswith(("http://", "https://"))
        assert "@" not in url
