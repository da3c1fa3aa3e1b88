# SPDX-License-Identifier: GPL-2.0-or-later
"""S3 servers that `make test` does not install, each started where its programs are on PATH: see OTHERS.

    with service_named("versitygw")(folder) as service: ...

docs/testing.rst says where each comes from. They are Services: processes of their own on 127.0.0.1, ended by their
ids; an error at start, a program that is not there among them, raises ServiceFailed. Owner: whoever started it.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .services import (
    Moto,
    Rclone,
    SeaweedFS,
    Service,
    ServiceFailed,
    find_program,
    free_ports,
    plain_environment,
    stop_process,
)

SETUP_LIMIT_S = 180
OSD_LIMIT_S, OSD_TRIES = 15, 3


def find(name: str) -> str | None:
    """A program on PATH, or for a name in capitals the jar that this variable of the environment tells."""
    if name.isupper():
        told = os.environ.get(name, "")
        return told if Path(told).is_file() else None
    return find_program(name)


class Other(Service):
    """A service whose programs this machine may lack."""

    needs: Sequence[str] = ()

    @classmethod
    def missing(cls) -> list[str]:
        return [name for name in cls.needs if find(name) is None]

    def program(self, name: str) -> str:
        found = find(name)
        if found is None:
            raise ServiceFailed(f"{self.name} needs {name}, which is not there")
        return found


class OnePort(Other):
    """A service that listens on one port; `arguments` are those of its program, the first that it needs."""

    def arguments(self, port: int) -> Sequence[str]:
        raise NotImplementedError

    def command(self) -> Sequence[str]:
        return [self.program(self.needs[0]), *self.arguments(self.one_port())]


class Versity(OnePort):
    """Files of a folder, their metadata in extended attributes. It closes a connection after each answer."""

    name = "versitygw"
    needs = ("versitygw",)

    def arguments(self, port: int) -> Sequence[str]:
        (self.folder / "data").mkdir(exist_ok=True)
        who = ["--access", self.access_key_id, "--secret", self.secret]
        return [*who, "--port", f"127.0.0.1:{port}", "--region", self.region, "posix", str(self.folder / "data")]


class Minio(OnePort):
    """Objects in a folder; without its console and its look for updates."""

    name = "minio"
    uploads_by_prefix = False
    needs = ("minio",)

    def environment(self) -> Mapping[str, str]:
        who = {"MINIO_ROOT_USER": self.access_key_id, "MINIO_ROOT_PASSWORD": self.secret}
        return {**who, "MINIO_BROWSER": "off", "MINIO_UPDATE": "off", "HOME": str(self.folder)}

    def arguments(self, port: int) -> Sequence[str]:
        return ["server", "--quiet", "--address", f"127.0.0.1:{port}", str(self.folder / "data")]


class GoFakeS3(OnePort):
    """In memory, without authentication."""

    name = "gofakes3"
    checks_keys = False
    completes_with = "another"
    needs = ("gofakes3",)

    def arguments(self, port: int) -> Sequence[str]:
        return ["-backend", "memory", "-host", f"127.0.0.1:{port}"]


class S3Proxy(OnePort):
    """Files of a folder, through jclouds."""

    name = "s3proxy"
    completes_with = "another"
    needs = ("java", "S3PROXY_JAR")

    def arguments(self, port: int) -> Sequence[str]:
        (self.folder / "data").mkdir(exist_ok=True)
        properties = {
            "s3proxy.authorization": "aws-v2-or-v4",
            "s3proxy.endpoint": self.url,
            "s3proxy.identity": self.access_key_id,
            "s3proxy.credential": self.secret,
            "jclouds.provider": "filesystem-nio2",
            "jclouds.identity": "unused",
            "jclouds.credential": "unused",
            "jclouds.filesystem.basedir": str(self.folder / "data"),
        }
        path = self.folder / "s3proxy.conf"
        path.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        return ["-jar", self.program("S3PROXY_JAR"), "--properties", str(path)]


class Several(Other):
    """A service of several processes: those of `supporting` are started first and ended last."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._supporting: list[subprocess.Popen[bytes]] = []

    def run(self, *command: str) -> str:
        """One command of the set-up; what it said."""
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=self.folder, env=plain_environment(), timeout=SETUP_LIMIT_S
        )
        if done.returncode != 0:
            raise ServiceFailed(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def run_patiently(
        self, *command: str, until: Callable[[str], bool] = lambda _: True, limit_s: float = SETUP_LIMIT_S
    ) -> str:
        """The same, again and again until it succeeds and says what is waited for."""
        end = time.monotonic() + limit_s
        while True:
            try:
                told = self.run(*command)
                if until(told):
                    return told
                problem = ServiceFailed(f"{' '.join(command)} says {told}")
            except ServiceFailed as error:
                problem = error
            if time.monotonic() > end:
                raise problem
            time.sleep(0.2)

    def support(self, *command: str) -> None:
        """Starts a process that runs as long as the service."""
        with (self.folder / f"{Path(command[0]).name}-{len(self._supporting)}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, env=plain_environment()
            )
        self._supporting.append(process)

    def stop(self) -> None:
        super().stop()
        while self._supporting:
            stop_process(self._supporting.pop())


class Swift(Several):
    """OpenStack Swift with s3api: one account, container and object server, and the proxy. Its listings lag."""

    name = "swift"
    needs = ("swift-ring-builder", "swift-account-server", "swift-container-server", "swift-object-server",
             "swift-proxy-server")
    access_key_id = "test:tester"

    def command(self) -> Sequence[str]:
        ports = dict(zip(("account", "container", "object", "proxy"), free_ports(4)))
        (self.folder / "devices" / "d1").mkdir(parents=True, exist_ok=True)
        (self.folder / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_prefix = a\nswift_hash_path_suffix = b\n"
            "[storage-policy:0]\nname = only\ndefault = yes\n"
        )
        for kind in ("account", "container", "object"):
            # They name this start's ports.
            builder = self.folder / f"{kind}.builder"
            builder.unlink(missing_ok=True)
            ring = (self.program("swift-ring-builder"), str(builder))
            self.run(*ring, "create", "4", "1", "0")
            self.run(*ring, "add", f"r1z1-127.0.0.1:{ports[kind]}/d1", "1")
            self.run(*ring, "rebalance")
            conf = self._conf(kind, ports[kind], [f"{kind}-server"], {f"app:{kind}-server": f"egg:swift#{kind}"})
            self.support(self.program(f"swift-{kind}-server"), conf)
        self.url = f"http://127.0.0.1:{ports['proxy']}"
        pipeline = ["catch_errors", "cache", "s3api", "tempauth", "bulk", "slo", "versioned_writes", "proxy-server"]
        apps = {"app:proxy-server": "egg:swift#proxy\naccount_autocreate = true"}
        for name in pipeline[:-1]:
            apps[f"filter:{name}"] = {
                "cache": "egg:swift#memcache\nmemcache_servers = 127.0.0.1:1",
                "s3api": "egg:swift#s3api\ns3_acl = false\ncheck_bucket_owner = false\nmin_segment_size = 1",
                "tempauth": f"egg:swift#tempauth\nuser_test_tester = {self.secret} .admin",
            }.get(name, f"egg:swift#{name}")
        return [self.program("swift-proxy-server"), self._conf("proxy", ports["proxy"], pipeline, apps)]

    def _conf(self, kind: str, port: int, pipeline: Sequence[str], uses: Mapping[str, str]) -> str:
        path = self.folder / f"{kind}-server.conf"
        text = (
            f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 1\nmount_check = false\nuser = root\n"
            f"devices = {self.folder / 'devices'}\nswift_dir = {self.folder}\nfallocate_reserve = 0\n"
            f"[pipeline:main]\npipeline = {' '.join(pipeline)}\n"
        )
        path.write_text(text + "".join(f"[{section}]\nuse = {use}\n" for section, use in uses.items()))
        return str(path)


class Garage(Other):
    """One node of Garage with its data in the folder. It looks at the region."""

    name = "garage"
    needs = ("garage",)
    access_key_id = "GK" + "31c2f218a2e44f485b94239e"
    secret = "b892c0665f0ada8a4755dae98baa3b133590e11dae3bcc1f9d769d67f16c3835"

    def environment(self) -> Mapping[str, str]:
        return {"GARAGE_DEFAULT_ACCESS_KEY": self.access_key_id, "GARAGE_DEFAULT_SECRET_KEY": self.secret}

    def command(self) -> Sequence[str]:
        api, rpc = free_ports(2)
        self.url = f"http://127.0.0.1:{api}"
        conf = self.folder / "garage.toml"
        conf.write_text(
            f'metadata_dir = "{self.folder}/meta"\ndata_dir = "{self.folder}/data"\ndb_engine = "sqlite"\n'
            f'replication_factor = 1\nrpc_secret = "{"0f" * 32}"\n'
            f'rpc_bind_addr = "127.0.0.1:{rpc}"\nrpc_public_addr = "127.0.0.1:{rpc}"\n'
            f'[s3_api]\ns3_region = "{self.region}"\napi_bind_addr = "127.0.0.1:{api}"\nroot_domain = ".s3.garage"\n'
        )
        return [self.program("garage"), "-c", str(conf), "server", "--single-node", "--default-access-key"]


class Rgw(Several):
    """Ceph's RADOS gateway on one monitor and one OSD, which keeps objects in memory, so that it starts once."""

    name = "rgw"
    needs = ("ceph", "monmaptool", "ceph-mon", "ceph-osd", "radosgw-admin", "radosgw")
    completes_with = "nothing"
    cluster = "0f0f0f0f-1111-4222-8333-444444444444"

    def command(self) -> Sequence[str]:
        monitor, gateway = free_ports(2)
        self.url = f"http://127.0.0.1:{gateway}"
        conf = self.folder / "ceph.conf"
        conf.write_text(
            f"[global]\nfsid = {self.cluster}\nmon_host = v1:127.0.0.1:{monitor}\nms_bind_msgr2 = false\n"
            "auth_cluster_required = none\nauth_service_required = none\nauth_client_required = none\n"
            "osd_pool_default_size = 1\nosd_pool_default_min_size = 1\nmon_allow_pool_size_one = true\n"
            "osd_pool_default_pg_num = 4\nosd_crush_chooseleaf_type = 0\nmon_max_pg_per_osd = 1000\n"
            "osd_pool_default_pg_autoscale_mode = off\nosd_objectstore = memstore\nmemstore_device_bytes = 4294967296\n"
            f"mon_data = {self.folder}/mon\nosd_data = {self.folder}/osd\nrun_dir = {self.folder}\n"
            f"admin_socket = {self.folder}/$name.asok\nlog_file = {self.folder}/$name.log\npid_file =\n"
            "mon_data_avail_crit = 1\nmon_data_avail_warn = 1\nms_bind_port_min = 22000\nms_bind_port_max = 22999\n"
            "public_addr = 127.0.0.1\ncluster_addr = 127.0.0.1\n"
        )
        ceph = [self.program("ceph"), "-c", str(conf), "--connect-timeout", "30"]
        (self.folder / "mon").mkdir(exist_ok=True)
        (self.folder / "osd").mkdir(exist_ok=True)
        monmap = str(self.folder / "monmap")
        self.run(self.program("monmaptool"), "--create", "--clobber", "--fsid", self.cluster,
                 "--addv", "a", f"[v1:127.0.0.1:{monitor}]", monmap)
        mon = [self.program("ceph-mon"), "-c", str(conf), "-i", "a"]
        self.run(*mon, "--mkfs", "--monmap", monmap)
        self.support(*mon, "-f")
        number = self.run_patiently(*ceph, "osd", "create").strip()
        osd = [self.program("ceph-osd"), "-c", str(conf), "-i", number]
        self.run(*osd, "--mkfs")
        self.run_patiently(*ceph, "osd", "crush", "add", f"osd.{number}", "1", "root=default")
        self._boot([*osd, "-f"], [*ceph, "osd", "stat", "-f", "json"])
        admin = [self.program("radosgw-admin"), "-c", str(conf)]
        self.run(*admin, "user", "create", "--uid=tests", "--display-name=tests", "--max-buckets=100000",
                 f"--access-key={self.access_key_id}", f"--secret-key={self.secret}")
        return [self.program("radosgw"), "-c", str(conf), "-f", "-n", "client.rgw",
                f"--rgw_frontends=beast endpoint=127.0.0.1:{gateway}"]

    def _boot(self, osd: Sequence[str], stat: Sequence[str]) -> None:
        """Starts the OSD. One in ten asks the monitor too early, and waits for ever: then another one is started."""
        for _ in range(OSD_TRIES):
            self.support(*osd)
            try:
                self.run_patiently(*stat, until=lambda told: json.loads(told)["num_up_osds"] > 0, limit_s=OSD_LIMIT_S)
                return
            except ServiceFailed:
                stop_process(self._supporting.pop())
        raise ServiceFailed("Ceph's OSD does not come up")


OTHERS: Mapping[str, type[Other]] = {
    each.name: each for each in (Versity, Minio, GoFakeS3, S3Proxy, Swift, Garage, Rgw)
}
INSTALLED: Mapping[str, type[Service]] = {"moto": Moto, "seaweedfs": SeaweedFS, "rclone": Rclone}


def service_named(name: str) -> type[Service]:
    """The class of that name, as given to --on and in TAHOE_S3_SERVICES; KeyError where there is none."""
    return {**INSTALLED, **OTHERS}[name]
