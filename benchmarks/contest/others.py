# SPDX-License-Identifier: GPL-2.0-or-later
"""What a user would pick instead. One that is not installed is told of and left out."""
from __future__ import annotations

import asyncio
import importlib
import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable
from urllib.parse import urlsplit

from contest.load import ACCESS_KEY_ID, BUCKET, REGION, SECRET, THREADS, Contender, Load, check


class Threads:
    """Blocking calls from a pool of threads, or from the caller's where one request at a time is asked for."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS)

    def one(self, load: Load, index: int, body: bytes) -> None:
        raise NotImplementedError

    def run(self, load: Load, count: int) -> None:
        body = bytes(load.size) if load.method == "PUT" else b""
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

    def __init__(self, url: str) -> None:
        super().__init__()
        boto3 = importlib.import_module("boto3")
        config = importlib.import_module("botocore.config").Config(
            signature_version="s3v4", max_pool_connections=THREADS, retries={"max_attempts": 0},
            s3={"addressing_style": "path"}, request_checksum_calculation="when_required",
            response_checksum_validation="when_required", proxies={},
        )
        self._client = boto3.client("s3", endpoint_url=url, region_name=REGION, aws_access_key_id=ACCESS_KEY_ID,
                                    aws_secret_access_key=SECRET, config=config)

    def one(self, load: Load, index: int, body: bytes) -> None:
        if load.method == "PUT":
            self._client.put_object(Bucket=BUCKET, Key=load.key, Body=body)
            return
        more = {"Range": "bytes={}-{}".format(*load.range_of(index))} if load.ranged else {}
        check(load, self._client.get_object(Bucket=BUCKET, Key=load.key, **more)["Body"].read())


class Minio(Threads):
    name = "minio"

    def __init__(self, url: str) -> None:
        super().__init__()
        pool = importlib.import_module("urllib3").PoolManager(maxsize=THREADS, retries=False)
        self._client = importlib.import_module("minio").Minio(
            urlsplit(url).netloc, access_key=ACCESS_KEY_ID, secret_key=SECRET, secure=False, region=REGION,
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

    name = "obstore"

    def __init__(self, url: str) -> None:
        self._api = importlib.import_module("obstore")
        self._store = importlib.import_module("obstore.store").S3Store(
            BUCKET, endpoint=url, region=REGION, access_key_id=ACCESS_KEY_ID, secret_access_key=SECRET,
            client_options={"allow_http": True},
        )

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
        body = bytes(load.size) if load.method == "PUT" else b""
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


class PyCurl:
    """Unsigned: what libcurl does from Python, with nothing of S3."""

    name = "pycurl (unsigned)"
    """Wheels of pycurl bring a libcurl of their own, newer than many systems'."""

    def __init__(self, url: str) -> None:
        self._curl = importlib.import_module("pycurl")
        print(self._curl.version)
        self._url = url
        self._multi = self._curl.CurlMulti()
        self._multi.setopt(self._curl.M_MAXCONNECTS, THREADS)
        self._free: list[Any] = []

    def _handle(self, load: Load, index: int, body: bytes, keep: dict[Any, io.BytesIO]) -> Any:
        curl = self._curl
        easy = self._free.pop() if self._free else curl.Curl()
        easy.reset()
        keep[easy] = io.BytesIO()
        easy.setopt(curl.URL, f"{self._url}/{BUCKET}/{load.key}")
        easy.setopt(curl.PROXY, "")
        easy.setopt(curl.NOSIGNAL, 1)
        easy.setopt(curl.FAILONERROR, 1)
        easy.setopt(curl.WRITEDATA, keep[easy])
        if load.method == "PUT":
            easy.setopt(curl.POST, 1)
            easy.setopt(curl.POSTFIELDS, body)
            easy.setopt(curl.CUSTOMREQUEST, "PUT")
            easy.setopt(curl.HTTPHEADER, ["Expect:", "Content-Type: application/octet-stream"])
        elif load.ranged:
            easy.setopt(curl.RANGE, "{}-{}".format(*load.range_of(index)))
        return easy

    def _ended(self, load: Load, easy: Any, keep: dict[Any, io.BytesIO]) -> None:
        data = keep.pop(easy).getvalue()
        if load.method == "GET":
            check(load, data)
        self._free.append(easy)

    def run(self, load: Load, count: int) -> None:
        body = bytes(load.size) if load.method == "PUT" else b""
        keep: dict[Any, io.BytesIO] = {}
        if load.parallel == 1:
            for index in range(count):
                easy = self._handle(load, index, body, keep)
                easy.perform()
                self._ended(load, easy, keep)
            return
        begun = ended = 0
        while ended < count:
            while begun < count and begun - ended < load.parallel:
                self._multi.add_handle(self._handle(load, begun, body, keep))
                begun += 1
            self._multi.perform()
            more = 1
            while more:
                more, good, bad = self._multi.info_read()
                if bad:
                    raise RuntimeError(bad[0][2])
                for easy in good:
                    self._multi.remove_handle(easy)
                    self._ended(load, easy, keep)
                    ended += 1
            if begun == count or begun - ended == load.parallel:
                self._multi.select(1.0)

    def close(self) -> None:
        self._multi.close()


class AwsCrt:
    """Its S3Client, one meta request a request; parts and checksums of its own are off."""

    name = "awscrt"

    def __init__(self, url: str) -> None:
        self._s3 = importlib.import_module("awscrt.s3")
        self._http = importlib.import_module("awscrt.http")
        auth = importlib.import_module("awscrt.auth")
        self._host = urlsplit(url).netloc
        self._client = self._s3.S3Client(
            region=REGION, tls_mode=self._s3.S3RequestTlsMode.DISABLED, throughput_target_gbps=10,
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
        body = bytes(load.size) if load.method == "PUT" else b""
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


def installed(url: str) -> list[Contender]:
    """All that can be imported, each against that server."""
    found: list[Contender] = []
    kinds: tuple[Any, ...] = (Boto3, PyCurl, AwsCrt, Obstore, Minio)
    for kind in kinds:
        try:
            found.append(kind(url))
        except ImportError as error:
            print(f"LEFT OUT: {kind.name} ({error}); install benchmarks/requirements.txt", flush=True)
    return found
