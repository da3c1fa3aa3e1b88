# SPDX-License-Identifier: GPL-2.0-or-later
"""What a user would pick instead. One that is not installed is told of and left out."""
from __future__ import annotations

import asyncio
import importlib
import io
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable
from urllib.parse import urlsplit

from contest.load import ACCESS_KEY_ID, BUCKET, REGION, SECRET, THREADS, Load, Payload, Site, check


class Threads:
    """Blocking calls from a pool of threads, or from the caller's where one request at a time is asked for."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS)

    def one(self, load: Load, index: int, body: bytes) -> None:
        raise NotImplementedError

    def run(self, load: Load, count: int) -> None:
        body = load.body
        if load.parallel == 1:
            for index in range(count):
                self.one(load, index, body)
            return
        lock, left = threading.Lock(), iter(range(count))

        def lane(_: int) -> None:
            while True:
                with lock:
                    index = next(left, None)
                if index is None:
                    return
                self.one(load, index, body)

        list(self._pool.map(lane, range(load.parallel)))

    def close(self) -> None:
        self._pool.shutdown()


class Boto3(Threads):
    """boto3's client is botocore's; checksums beyond the signature are off, as with the others."""

    name = "boto3 (botocore)"

    def __init__(self, site: Site, *, signed: bool = True) -> None:
        super().__init__()
        self.payload: Payload = "signed" if signed or not site.https else "unsigned"
        boto3 = importlib.import_module("boto3")
        config = importlib.import_module("botocore.config").Config(
            signature_version="s3v4", max_pool_connections=THREADS, retries={"max_attempts": 0},
            s3={"addressing_style": "path", "payload_signing_enabled": signed},
            request_checksum_calculation="when_required", response_checksum_validation="when_required", proxies={},
        )
        self._client = boto3.client("s3", endpoint_url=site.url, region_name=REGION, config=config,
                                    aws_access_key_id=ACCESS_KEY_ID, aws_secret_access_key=SECRET,
                                    verify=site.ca_file)

    def one(self, load: Load, index: int, body: bytes) -> None:
        if load.method == "PUT":
            self._client.put_object(Bucket=BUCKET, Key=load.key, Body=body)
            return
        more = {"Range": "bytes={}-{}".format(*load.range_of(index))} if load.ranged else {}
        check(load, self._client.get_object(Bucket=BUCKET, Key=load.key, **more)["Body"].read())


class Minio(Threads):
    """Over http it hashes the body; over https it says UNSIGNED-PAYLOAD and adds Content-MD5. Neither can be chosen."""

    name = "minio"

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.payload: Payload = "unsigned" if site.https else "signed"
        pool = importlib.import_module("urllib3").PoolManager(
            maxsize=THREADS, retries=False, cert_reqs="CERT_REQUIRED", ca_certs=site.ca_file)
        self._client = importlib.import_module("minio").Minio(
            urlsplit(site.url).netloc, access_key=ACCESS_KEY_ID, secret_key=SECRET, secure=site.https, region=REGION,
            http_client=pool,
        )
        self._part_bytes = 64 * 1024 * 1024  # so that a body is one PUT

    def one(self, load: Load, index: int, body: bytes) -> None:
        if load.method == "PUT":
            self._client.put_object(BUCKET, load.key, io.BytesIO(body), load.size, part_size=self._part_bytes)
            return
        more = {"offset": index * load.size, "length": load.size} if load.ranged else {}
        answer = self._client.get_object(BUCKET, load.key, **more)
        check(load, answer.read())
        answer.close()
        answer.release_conn()


class Obstore:
    """Its coroutines; its blocking calls where one request at a time is asked for."""

    def __init__(self, site: Site, *, signed: bool = True) -> None:
        self.name = "obstore" if signed else "obstore, unsigned payload"
        self.payload: Payload = "signed" if signed else "unsigned"
        self._api = importlib.import_module("obstore")
        # It trusts what the system trusts, which it learns from SSL_CERT_FILE where that is set.
        before = os.environ.get("SSL_CERT_FILE")
        if site.ca_file:
            os.environ["SSL_CERT_FILE"] = site.ca_file
        try:
            self._store = importlib.import_module("obstore.store").S3Store(
                BUCKET, endpoint=site.url, region=REGION, access_key_id=ACCESS_KEY_ID, secret_access_key=SECRET,
                config={"unsigned_payload": not signed}, client_options={"allow_http": True},
            )
        finally:
            if before is None:
                os.environ.pop("SSL_CERT_FILE", None)
            else:
                os.environ["SSL_CERT_FILE"] = before

    def _blocking(self, load: Load, index: int, body: bytes) -> None:
        if load.method == "PUT":
            self._api.put(self._store, load.key, body, use_multipart=False)
        elif load.ranged:
            check(load, bytes(self._api.get_range(self._store, load.key, start=index * load.size, length=load.size)))
        else:
            check(load, bytes(self._api.get(self._store, load.key).bytes()))

    async def _coroutine(self, load: Load, index: int, body: bytes) -> None:
        if load.method == "PUT":
            await self._api.put_async(self._store, load.key, body, use_multipart=False)
        elif load.ranged:
            start = index * load.size
            check(load, bytes(await self._api.get_range_async(self._store, load.key, start=start, length=load.size)))
        else:
            check(load, bytes(await (await self._api.get_async(self._store, load.key)).bytes_async()))

    def run(self, load: Load, count: int) -> None:
        body = load.body
        if load.parallel == 1:
            for index in range(count):
                self._blocking(load, index, body)
            return
        left = iter(range(count))

        async def lane(left: Iterator[int]) -> None:
            for index in left:
                await self._coroutine(load, index, body)

        async def all_lanes() -> None:
            await asyncio.gather(*(lane(left) for _ in range(load.parallel)))

        asyncio.run(all_lanes())

    def close(self) -> None:
        self._store = None


class AwsCrt:
    """Its S3Client, one meta request a request; parts and checksums of its own are off. It never hashes a body."""

    name = "awscrt"
    payload: Payload = "unsigned"

    def __init__(self, site: Site) -> None:
        self._s3 = importlib.import_module("awscrt.s3")
        self._http = importlib.import_module("awscrt.http")
        auth = importlib.import_module("awscrt.auth")
        self._host = urlsplit(site.url).netloc
        modes, connection = self._s3.S3RequestTlsMode, None
        if site.ca_file:
            tls = importlib.import_module("awscrt.io")
            options = tls.TlsContextOptions()
            options.override_default_trust_store_from_path(None, site.ca_file)
            connection = tls.ClientTlsContext(options).new_connection_options()
        self._client = self._s3.S3Client(
            region=REGION, tls_mode=modes.ENABLED if site.ca_file else modes.DISABLED,
            tls_connection_options=connection, throughput_target_gbps=10,
            signing_config=self._s3.create_default_s3_signing_config(
                region=REGION,
                credential_provider=auth.AwsCredentialsProvider.new_static(ACCESS_KEY_ID, SECRET),
            ),
        )

    def _start(self, load: Load, index: int, body: bytes, ended: Callable[[Any, int], None]) -> Any:
        headers = self._http.HttpHeaders([("host", self._host)])
        stream = None
        if load.method == "PUT":
            headers.add("content-length", str(load.size))
            headers.add("content-type", "application/octet-stream")
            stream = io.BytesIO(body)
        elif load.ranged:
            headers.add("range", "bytes={}-{}".format(*load.range_of(index)))
        request = self._http.HttpRequest(load.method, f"/{BUCKET}/{load.key}", headers, stream)
        got = bytearray()

        def on_body(chunk: bytes, offset: int, **_: Any) -> None:
            got.extend(chunk)

        def on_done(error: Any, **_: Any) -> None:
            ended(error, len(got))

        return self._client.make_request(
            request=request, type=self._s3.S3RequestType.DEFAULT,
            operation_name="PutObject" if load.method == "PUT" else "GetObject", on_body=on_body, on_done=on_done,
        )

    def run(self, load: Load, count: int) -> None:
        body = load.body
        places, errors = threading.Semaphore(load.parallel), []

        def ended(error: Any, size: int) -> None:
            if error is not None or (load.method == "GET" and size != load.size):
                errors.append(error or ValueError(f"{size} bytes came"))
            places.release()

        live: dict[int, Any] = {}  # a request that is dropped is cancelled
        for index in range(count):
            if not places.acquire(timeout=30):
                raise TimeoutError("nothing ended in 30 seconds")
            if errors:
                raise errors[0]
            live[index] = self._start(load, index, body, ended)
            live.pop(index - 4 * load.parallel, None)
        for _ in range(load.parallel):
            if not places.acquire(timeout=30):
                raise TimeoutError("nothing ended in 30 seconds")
        if errors:
            raise errors[0]

    def close(self) -> None:
        self._client = None
