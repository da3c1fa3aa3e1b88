# SPDX-License-Identifier: GPL-2.0-or-later
"""What is put into allmydata, and into which versions of it.

install() is called by _hook.py right after allmydata.client was executed. It changes five places, named in
HOOK_POINTS; each falls through to Tahoe's own code, with the same arguments, for a node without `backend` (and so does
what is changed of two web pages, web.storage.StorageStatus and web.status.Statistics, when a node on a bucket is made):

- the valid keys of [storage] in client._client_config, and client.config_from_string, which has bound them;
- client.create_client_from_config, which opens the bucket before the node is built: that takes time, while
all of Tahoe's code behind it is synchronous; - client._Client.get_anonymous_storage_server, where
StorageServer stands for ours while Tahoe's own code reads reserved_space, expire.* and the rest; -
client.FoolscapStorageServer and protocol_switch.HTTPServer, which choose by the type of the storage server.

Owner: the reactor's thread. The storage server and the C extension are imported only for a node that asks for
cloud.s3. Errors are those of errors.py.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import allmydata
from allmydata.util import configutil
from twisted.internet import defer
from twisted.logger import Logger

from tahoe_s3 import config as s3config
from tahoe_s3 import errors

if TYPE_CHECKING:
    from tahoe_s3.store.store import Store

WORKING_VERSIONS = "1.20.0"
HOOK_POINTS = (
    "_client_config",
    "_valid_config",
    "config_from_string",
    "create_client_from_config",
    "storage_enabled",
    "StorageServer",
    "FoolscapStorageServer",
    "_Client.STOREDIR",
    "_Client.get_anonymous_storage_server",
)
STORAGE_ARGUMENTS = frozenset(
    (
        "reserved_space",
        "discard_storage",
        "readonly_storage",
        "stats_provider",
        "expiration_enabled",
        "expiration_mode",
        "expiration_override_lease_duration",
        "expiration_cutoff_date",
        "expiration_sharetypes",
    )
)
"""What get_anonymous_storage_server passes to StorageServer by name in the versions that work."""

_MARK = "tahoe_s3_wraps"
_BACKEND = "tahoe_s3_backend"
"""The attribute of the node's _Config that carries the open backend to get_anonymous_storage_server."""

_log = Logger(namespace="tahoe_s3")


def install(client: Any) -> None:
    """Put the plug-in into allmydata.client. Again on the same module it changes nothing."""
    from allmydata import protocol_switch

    missing = missing_hook_points(client, protocol_switch)
    if missing:
        _refuse_in(client, missing)
        return
    if not hasattr(client.create_client_from_config, _MARK):
        _accept_keys(client)
        client.create_client_from_config = _opening_bucket(client, client.create_client_from_config)
        node_class = client._Client
        node_class.get_anonymous_storage_server = _choosing_server(
            client, node_class.get_anonymous_storage_server
        )
        client.FoolscapStorageServer = _choosing_class(
            client.FoolscapStorageServer, place=0, ours=lambda: _load("foolscap").S3FoolscapStorageServer
        )
    if not hasattr(protocol_switch.HTTPServer, _MARK):
        protocol_switch.HTTPServer = _choosing_class(
            protocol_switch.HTTPServer, place=1, ours=lambda: _load("http").S3HTTPServer
        )


def missing_hook_points(client: Any, protocol_switch: Any) -> list[str]:
    """The names that this plug-in needs and that the installed Tahoe-LAFS does not have as expected."""
    missing = []
    for dotted in HOOK_POINTS:
        place: Any = client
        for name in dotted.split("."):
            place = getattr(place, name, None)
        if place is None:
            missing.append(f"allmydata.client.{dotted}")
    bound = getattr(getattr(client, "config_from_string", None), "keywords", {})
    if not missing and "_valid_config" not in bound:
        missing.append("allmydata.client.config_from_string with _valid_config bound")
    if not hasattr(protocol_switch, "HTTPServer"):
        missing.append("allmydata.protocol_switch.HTTPServer")
    return missing


def _unsupported(problem: str) -> errors.UnsupportedTahoe:
    return errors.UnsupportedTahoe(found=str(allmydata.__version__), problem=problem, works=WORKING_VERSIONS)


def _refuse_in(client: Any, missing: list[str]) -> None:
    """On a Tahoe-LAFS built otherwise: tell a node that asks for our keys, change nothing for others."""

    def refusing(stock: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(stock)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            try:
                return stock(*args, **kwargs)
            except configutil.UnknownConfigError as error:
                if re.search(r"\[storage\] contains unknown option '(backend|s3\.[^']*)'", str(error)):
                    raise _unsupported("lacks " + ", ".join(missing)) from None
                raise

        setattr(wrapper, _MARK, stock)
        return wrapper

    for name in ("read_config", "config_from_string"):
        stock = getattr(client, name, None)
        if stock is not None and not hasattr(stock, _MARK):
            setattr(client, name, refusing(stock))


def _accept_keys(client: Any) -> None:
    """Let validation pass what wants_s3() judges later, with better words than "unknown option"."""

    def is_ours(section: str, item: str) -> bool:
        return section == s3config.SECTION and s3config.is_ours(item)

    client._client_config = client._client_config.update(
        configutil.ValidConfiguration({}, lambda section: False, is_ours)
    )
    bound = client.config_from_string
    client.config_from_string = functools.partial(
        bound.func, *bound.args, **{**bound.keywords, "_valid_config": client._valid_config()}
    )


def _opening_bucket(client: Any, stock: Callable[..., Any]) -> Callable[..., Any]:
    """create_client_from_config: judges the configuration and opens the bucket before the node is built."""

    @functools.wraps(stock)
    def create_client_from_config(config: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            ours = s3config.wants_s3(config) and client.storage_enabled(config)
        except Exception:
            return defer.fail()
        if not ours:
            return stock(config, *args, **kwargs)
        return _create_on_bucket(client, config, lambda: stock(config, *args, **kwargs))

    setattr(create_client_from_config, _MARK, stock)
    return create_client_from_config


@defer.inlineCallbacks
def _create_on_bucket(
    client: Any, config: Any, create: Callable[[], Any]
) -> Generator[defer.Deferred[Any], Any, Any]:
    """Open the bucket, then build the node; a node that cannot be built closes the bucket again."""
    s3 = s3config.read_s3_config(config)
    for sentence in s3.warnings:
        _log.warn("{sentence}", sentence=sentence)
    settings = _node_settings(config)
    folder = config.get_config("storage", "storage_dir", client._Client.STOREDIR)
    storage_dir = Path(config.get_config_path(folder))
    server = _load("server")
    _load("foolscap")
    _load("http")
    if config.get_config("node", "web.port", None):
        _show_pages()
    backend: Store = yield server.open_storage(
        client.reactor, s3, nodeid=_node_id(config), storage_dir=storage_dir, settings=settings
    )
    setattr(config, _BACKEND, backend)
    try:
        node = yield create()
    except Exception:
        delattr(config, _BACKEND)
        yield backend.close()
        raise
    return node


def _node_settings(config: Any) -> s3config.NodeSettings:
    return s3config.NodeSettings(has_permutation_seed=bool(config.get_config_from_file("permutation-seed")))


def _node_id(config: Any) -> bytes:
    """The 20 bytes that the node will have as `nodeid`, from private/node.pem, which Foolscap makes once."""
    from base64 import b32decode

    from foolscap.api import Tub

    tub_id: str = Tub(certFile=config.get_private_path("node.pem")).tubID
    return b32decode(tub_id.upper())


def _choosing_server(client: Any, stock: Callable[..., Any]) -> Callable[..., Any]:
    """_Client.get_anonymous_storage_server: Tahoe's own code, with our class where it names StorageServer."""

    @functools.wraps(stock)
    def get_anonymous_storage_server(node: Any) -> Any:
        backend = getattr(node.config, _BACKEND, None)
        if backend is None:
            if s3config.wants_s3(node.config) and client.storage_enabled(node.config):
                raise errors.NotPrepared
            return stock(node)
        with _standing_for_storage_server(client, _ServerFactory(client.StorageServer.name, backend)):
            server = stock(node)
        if not _is_ours(server):
            raise _unsupported("does not build its storage server with allmydata.client.StorageServer")
        return server

    setattr(get_anonymous_storage_server, _MARK, stock)
    return get_anonymous_storage_server


@contextlib.contextmanager
def _standing_for_storage_server(client: Any, factory: _ServerFactory) -> Iterator[None]:
    """No other node can be built meanwhile: what runs inside is synchronous and in the reactor's thread."""
    stock = client.StorageServer
    client.StorageServer = factory
    try:
        yield
    finally:
        client.StorageServer = stock


class _ServerFactory:
    """Called like the class StorageServer, and asked for its `name`."""

    def __init__(self, name: str, backend: Store) -> None:
        self.name = name
        self._backend = backend

    def __call__(self, storedir: str, nodeid: bytes, **kwargs: Any) -> Any:
        unknown = sorted(set(kwargs) - STORAGE_ARGUMENTS)
        if unknown:
            raise _unsupported(f"gives its storage server the unknown argument {unknown[0]}")
        kwargs.pop("discard_storage", None)
        return _load("server").S3StorageServer(storedir, nodeid, backend=self._backend, **kwargs)


def _choosing_class(stock: Any, *, place: int, ours: Callable[[], Any]) -> Callable[..., Any]:
    """A factory in place of a class: `place` is the position of the storage server among the arguments."""

    @functools.wraps(stock, updated=())
    def factory(*args: Any, **kwargs: Any) -> Any:
        server = args[place] if len(args) > place else kwargs.get("storage_server")
        return (ours() if _is_ours(server) else stock)(*args, **kwargs)

    setattr(factory, _MARK, stock)
    return factory


def _show_pages() -> None:
    """Let the web pages /storage and /statistics tell of the bucket, on nodes that have one."""
    pages = _load("pages")
    from allmydata.web.status import Statistics
    from allmydata.web.storage import StorageStatus

    if hasattr(StorageStatus.render_HTML, _MARK):
        return

    def shows_ours(page: Any) -> bool:
        return _is_ours(page._storage)

    def counts_ours(page: Any) -> bool:
        return any(_is_ours(producer) for producer in page._provider.stats_producers)

    stock_json = StorageStatus.render_JSON
    StorageStatus.render_HTML = _choosing_method(StorageStatus.render_HTML, shows_ours, pages.storage_html)
    StorageStatus.render_JSON = _choosing_method(
        stock_json, shows_ours, lambda page, req: pages.storage_json(page, stock_json(page, req))
    )
    Statistics.render_OPENMETRICS = _choosing_method(Statistics.render_OPENMETRICS, counts_ours, pages.openmetrics)


def _choosing_method(
    stock: Callable[..., Any], for_us: Callable[[Any], bool], ours: Callable[..., Any]
) -> Callable[..., Any]:
    """A method of a class, by what it is called on."""

    @functools.wraps(stock)
    def method(page: Any, *args: Any, **kwargs: Any) -> Any:
        return (ours if for_us(page) else stock)(page, *args, **kwargs)

    setattr(method, _MARK, stock)
    return method


def _is_ours(server: object) -> bool:
    module = sys.modules.get("tahoe_s3.server")
    return module is not None and isinstance(server, module.S3StorageServer)


def _load(name: str) -> Any:
    """A module of ours that needs Tahoe's inner parts or the C extension, or the reason why it fails."""
    from importlib import import_module

    try:
        return import_module(f"tahoe_s3.{name}")
    except ImportError as error:
        if (error.name or "").split(".")[0] == "allmydata":
            raise _unsupported(f"does not fit ({error})") from error
        raise errors.BrokenInstall(detail=str(error)) from error
