# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine under a mixed load while a name server does not answer, in a network and mount namespace of its own.

    unshare --mount --net python -m contest.loop_child FOLDER CA_FILE CERT KEY SECONDS

Nobody else sees any of it: in here is a loopback interface, the null server, and a socket where /etc/resolv.conf says
that a name server is, which takes queries and says nothing. Two engines, since an engine has one host: "busy" has 64
transfers under way, a quarter each small GETs, small PUTs, GETs of 8 MiB windows and PUTs of 8 MiB, and every
BURST_EVERY_S 32 more GETs, whose connections the server then ends, so that each of them makes a new TLS connection;
"nameless" has 16 requests that wait for the name server. Now and then one of each is cancelled. At last the network is
taken away under transfers in full flight, and the engines are closed.

Prints one line of JSON: times in microseconds ("loop": what stats() says) and milliseconds (lists).
"""
from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from contest.authority import Certificates
from contest.load import ACCESS_KEY_ID, BUCKET, REGION, SECRET
from contest.server import NullServer
from tahoe_s3._native import Engine, Window

MIB = 1024 * 1024
LANES = 64
BURST = 32
BURST_EVERY_S = 0.5
CANCEL_EVERY_S = 0.1
NAMELESS = 16
WARM_S = 1.0
CLOSES = 3
FLIGHT_S = 0.5
BIG = f"big-{8 * MIB}"
NAME = "objects.benchmark.example"
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18


def set_loopback(up: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        asked = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(sock, SIOCGIFFLAGS, asked))[1]
        flags = flags | IFF_UP if up else flags & ~IFF_UP
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags))


def silent_name_server(folder: Path) -> socket.socket:
    """A socket that names are asked of, and /etc/resolv.conf of this mount namespace naming it."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 53))
    conf = folder / "resolv.conf"
    conf.write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:5\n")
    libc = ctypes.CDLL(None, use_errno=True)
    for source, target, flags in (("none", "/", MS_REC | MS_PRIVATE), (str(conf), "/etc/resolv.conf", MS_BIND)):
        if libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(flags), None) != 0:
            raise OSError(ctypes.get_errno(), f"mount on {target}")
    return sock


def require_silence() -> None:
    """That a name is really waited for: RuntimeError where it is answered, or refused, at once."""
    asking = threading.Thread(target=lambda: socket.getaddrinfo("another.benchmark.example", 443), daemon=True)
    asking.start()
    asking.join(1.0)
    if not asking.is_alive():
        raise RuntimeError("names do not wait for the name server here")


class Lane(NamedTuple):
    """Who asked: which of the 64 places, a burst or a nameless request; and its window."""

    kind: str
    number: int
    window: Window | None


class Work:
    """One engine, its requests, and the times of its cancels."""

    def __init__(self, endpoint: str, ca_file: Path) -> None:
        self.engine = Engine(endpoint=endpoint, region=REGION, bucket=BUCKET, ca_file=str(ca_file),
                             max_connections=160, buffer_budget_bytes=256 * MIB)
        self.engine.set_credentials(ACCESS_KEY_ID, SECRET.encode())
        self.live: dict[int, Lane] = {}
        self.cancelled: dict[int, float] = {}
        self.cancel_ms: list[float] = []
        self.ended = 0
        self.failures: dict[str, int] = {}

    def start(self, kind: str, number: int) -> None:
        window = None
        if kind == "lane" and number % 4 == 2:
            window = self.engine.window(8 * MIB)
            made = self.engine.submit("GET", BIG, into=window)
        elif kind == "lane" and number % 4 == 3:
            made = self.engine.submit("PUT", BIG, body=BODY)
        elif kind == "lane" and number % 4 == 1:
            made = self.engine.submit("PUT", "small-4096", body=BODY[:4096])
        elif kind == "nameless":
            made = self.engine.submit("GET", "small-4096", parse="bytes", attempts=1)
        else:
            key = "small-4096" if kind == "lane" else "close-4096"
            made = self.engine.submit("GET", key, parse="bytes", priority=0 if kind == "burst" else 1)
        self.live[made] = Lane(kind, number, window)

    def drain(self, *, again: bool) -> None:
        for event in self.engine.drain(64):
            if not event.final:
                continue
            now_s = time.perf_counter()
            lane = self.live.pop(event.id)
            self.ended += 1
            if event.id in self.cancelled:
                self.cancel_ms.append((now_s - self.cancelled.pop(event.id)) * 1e3)
            elif event.failure is not None:
                why = f"{event.failure.kind}: {event.failure.message}"
                self.failures[why] = self.failures.get(why, 0) + 1
            if lane.window is not None:
                lane.window.close()
            if again and lane.kind != "burst":
                self.start(lane.kind, lane.number)

    def cancel_one(self) -> None:
        """The oldest that is not being cancelled, of the large ones where there are any."""
        for made, lane in self.live.items():
            if made not in self.cancelled and (lane.kind == "nameless" or lane.number % 4 >= 2):
                self.cancelled[made] = time.perf_counter()
                self.engine.cancel(made)
                return


BODY = bytes(8 * MIB)


def run_load(busy: Work, nameless: Work, seconds: float) -> None:
    """Until the time is over."""
    poll = select.poll()
    for work in (busy, nameless):
        poll.register(work.engine.fileno(), select.POLLIN)
    end_s = time.perf_counter() + seconds
    burst_s = cancel_s = time.perf_counter()
    turn = 0
    while (now_s := time.perf_counter()) < end_s:
        if now_s >= burst_s:
            burst_s = now_s + BURST_EVERY_S
            for number in range(BURST):
                busy.start("burst", number)
        if now_s >= cancel_s:
            cancel_s = now_s + CANCEL_EVERY_S
            turn += 1
            (busy if turn % 2 else nameless).cancel_one()
        poll.poll(20)
        busy.drain(again=True)
        nameless.drain(again=True)


def begin(server: NullServer, certificates: Certificates) -> tuple[Work, Work]:
    busy = Work(server.url, certificates.ca_file)
    nameless = Work(f"https://{NAME}:{server.port}", certificates.ca_file)
    for number in range(LANES):
        busy.start("lane", number)
    for number in range(NAMELESS):
        nameless.start("nameless", number)
    return busy, nameless


def time_close(server: NullServer, certificates: Certificates) -> list[float]:
    """Milliseconds that close() takes of each engine, where the server stands still and no packet moves."""
    busy, nameless = begin(server, certificates)
    run_load(busy, nameless, FLIGHT_S)
    server.process.send_signal(signal.SIGSTOP)
    set_loopback(False)
    try:
        times = []
        for work in (busy, nameless):
            begun_s = time.perf_counter()
            work.engine.close()
            times.append((time.perf_counter() - begun_s) * 1e3)
    finally:
        set_loopback(True)
        server.process.send_signal(signal.SIGCONT)
    for work in (busy, nameless):
        while work.live:
            before = len(work.live)
            work.drain(again=False)
            if len(work.live) == before:
                raise RuntimeError(f"{before} requests have no final event after close()")
    return times


def measure(folder: Path, certificates: Certificates, seconds: float) -> dict[str, Any]:
    with NullServer(folder, certificates=certificates) as server:
        busy, nameless = begin(server, certificates)
        run_load(busy, nameless, WARM_S)
        before = server.stats()["handshakes"]
        for work in (busy, nameless):
            work.engine.stats()  # from here on
            work.ended = 0
        run_load(busy, nameless, seconds)
        stats = {"busy": busy.engine.stats(), "nameless": nameless.engine.stats()}
        told: dict[str, Any] = {
            "handshakes": server.stats()["handshakes"] - before - 1, "ended": busy.ended,
            "failures": {**busy.failures, **nameless.failures},
            "cancel_ms": {"busy": busy.cancel_ms, "nameless": nameless.cancel_ms},
            "loop": {name: {key: value for key, value in one.items() if key.startswith("loop_")}
                     for name, one in stats.items()},
        }
        busy.engine.close()
        nameless.engine.close()
        closes = [time_close(server, certificates) for _ in range(CLOSES)]
        told["close_ms"] = {"busy": [one[0] for one in closes], "nameless": [one[1] for one in closes]}
    return told


def main() -> None:
    folder = Path(sys.argv[1])
    certificates = Certificates(*(Path(text) for text in sys.argv[2:5]))
    set_loopback(True)
    sock = silent_name_server(folder)
    require_silence()
    print(json.dumps(measure(folder, certificates, float(sys.argv[5]))), flush=True)
    sock.close()
    os._exit(0)  # threads that wait for the name server must not hold this up


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
