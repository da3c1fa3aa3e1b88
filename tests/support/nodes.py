# SPDX-License-Identifier: GPL-2.0-or-later
"""One Tahoe-LAFS node as a process of its own: made by `tahoe create-*`, run by `tahoe run`, ended by its
process id.

Everything is bounded in time; what goes wrong is reported with the end of the node's log. Blocking: call
from a thread other than the reactor's. Owner: the test.
"""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .services import Service, free_ports, plain_environment, stop_process

COMMAND_LIMIT_S = 120
START_LIMIT_S = 120
POLL_S = 0.1


class NodeFailed(Exception):
    """A node or a command of Tahoe's that did not do what was asked, with what it said."""


def tahoe_program() -> str:
    """The `tahoe` of the virtualenv that runs the tests."""
    beside = Path(sys.executable).with_name("tahoe")
    if not beside.exists():
        raise NodeFailed(f"there is no tahoe beside {sys.executable}")
    return str(beside)


def run_tahoe(*arguments: str, check: bool = True, limit_s: float = COMMAND_LIMIT_S) -> tuple[int, str]:
    """Runs a command to its end; (exit status, output and errors together)."""
    done = subprocess.run(
        [tahoe_program(), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=plain_environment(),
        timeout=limit_s,
        check=False,
    )
    said = done.stdout.decode("utf-8", "replace")
    if check and done.returncode != 0:
        raise NodeFailed(f"tahoe {' '.join(arguments)} ended with {done.returncode}:\n{said[-3000:]}")
    return done.returncode, said


def wait_until(ready: Callable[[], bool], *, limit_s: float, what: str, said: Callable[[], str]) -> None:
    """Polls until `ready` says so; NodeFailed, with `said()`, after `limit_s`."""
    end = time.monotonic() + limit_s
    while not ready():
        if time.monotonic() > end:
            raise NodeFailed(f"waited {limit_s:.0f} s for {what}; the log ends:\n{said()}")
        time.sleep(POLL_S)


@dataclass
class S3Backend:
    """What a storage node's tahoe.cfg and private/ say about its bucket."""

    url: str
    bucket: str
    access_key_id: str
    secret: str
    usertoken: str | None = None
    producttoken: str | None = None
    options: Mapping[str, str] | None = None

    @classmethod
    def of(cls, service: Service, bucket: str | None = None, **options: str) -> S3Backend:
        """A bucket on a service: the one named, or a new one. `options` are s3.* keys without the s3."""
        name = bucket or service.make_bucket()
        return cls(service.url, name, service.access_key_id, service.secret, options=options)

    def lines(self) -> dict[str, str]:
        found = {
            "backend": "cloud.s3",
            "s3.access_key_id": self.access_key_id,
            "s3.bucket": self.bucket,
            "s3.url": self.url,
        }
        found.update({f"s3.{name}": value for name, value in (self.options or {}).items()})
        return found

    def private_files(self) -> dict[str, str]:
        files = {"s3secret": self.secret, "s3usertoken": self.usertoken, "s3producttoken": self.producttoken}
        return {name: text for name, text in files.items() if text is not None}


class Node:
    """A node's folder and, while it runs, its process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    # The folder.

    def edit(self, section: str, **values: str) -> None:
        """Sets options of tahoe.cfg; "__" in a name stands for a dot."""
        self.set_options(section, {name.replace("__", "."): value for name, value in values.items()})

    def set_options(self, section: str, values: Mapping[str, str | None]) -> None:
        """Sets options of tahoe.cfg, or removes those that are None."""
        parser = configparser.RawConfigParser(delimiters=("=",))
        path = self.folder / "tahoe.cfg"
        parser.read_string(path.read_text(encoding="utf-8"))
        if not parser.has_section(section):
            parser.add_section(section)
        for name, value in values.items():
            if value is None:
                parser.remove_option(section, name)
            else:
                parser.set(section, name, value)
        with path.open("w", encoding="utf-8") as out:
            parser.write(out)

    def private(self, name: str) -> Path:
        return self.folder / "private" / name

    def use_s3(self, backend: S3Backend) -> None:
        """Writes the keys of `backend = cloud.s3` and the files in private/."""
        self.set_options("storage", backend.lines())
        for name, text in backend.private_files().items():
            self.write_private(name, text)

    def write_private(self, name: str, text: str) -> None:
        path = self.private(name)
        path.write_text(text + "\n")
        path.chmod(0o600)

    def use_disk(self) -> None:
        """Takes every key of cloud.s3 out again."""
        parser = configparser.RawConfigParser(delimiters=("=",))
        parser.read(self.folder / "tahoe.cfg", encoding="utf-8")
        names = [name for name in parser.options("storage") if name == "backend" or name.startswith("s3.")]
        self.set_options("storage", dict.fromkeys(names))

    @property
    def storage_dir(self) -> Path:
        return self.folder / "storage"

    def lose_local_state(self) -> None:
        """Deletes the local storage folder; only while stopped."""
        if self.process is not None:
            raise NodeFailed("the node is running")
        shutil.rmtree(self.storage_dir)

    # The process.

    @property
    def output_path(self) -> Path:
        return self.folder / "output.log"

    def log_end(self, limit: int = 4000) -> str:
        """The ends of what the process said and of its twistd.log."""
        ends = []
        for path in (self.output_path, self.folder / "logs" / "twistd.log"):
            if path.exists():
                lines = path.read_text(errors="replace").splitlines()
                # wait_connected asks many times a second; its questions say nothing.
                told = "\n".join(line for line in lines if " GET /?t=json " not in line)
                ends.append(f"--- {path.name}\n{told[-limit:]}")
        return "\n".join(ends)

    def launch(self, *, environment: Mapping[str, str] | None = None) -> None:
        """Starts the process without waiting for anything."""
        if self.process is not None:
            raise NodeFailed("the node is running")
        for stale in ("node.url", "running.process"):
            (self.folder / stale).unlink(missing_ok=True)
        self._output = self.output_path.open("wb")
        self.process = subprocess.Popen(
            [tahoe_program(), "run", "--allow-stdin-close", str(self.folder)],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**plain_environment(), **(environment or {})},
        )

    def start(self, *, environment: Mapping[str, str] | None = None) -> None:
        """Starts the process and waits until the node serves."""
        self.launch(environment=environment)
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise

    def is_ready(self) -> bool:
        raise NotImplementedError

    def wait_ready(self) -> None:
        def ready() -> bool:
            if self.process is None or self.process.poll() is not None:
                raise NodeFailed(f"{self.folder.name} ended at its start; the log ends:\n{self.log_end()}")
            return self.is_ready()

        wait_until(ready, limit_s=START_LIMIT_S, what=f"{self.folder.name} to be ready", said=self.log_end)

    def wait_ended(self, limit_s: float = START_LIMIT_S) -> tuple[int, str]:
        """Waits for a process that is expected to end by itself; (exit status, what it said)."""
        if self.process is None:
            raise NodeFailed("the node is not running")
        try:
            status = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise NodeFailed(f"{self.folder.name} did not end; the log ends:\n{self.log_end()}") from None
        self._forget()
        return status, self.output_path.read_text(errors="replace")

    def stop(self, limit_s: float = 30) -> None:
        """Ends the node as an operator does."""
        if self.process is not None:
            stop_process(self.process, limit_s)
            self._forget()

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self._forget()

    def restart(self) -> None:
        self.stop()
        self.start()

    def _forget(self) -> None:
        self.process = None
        if self._output is not None:
            self._output.close()
            self._output = None


def free_endpoint() -> tuple[str, str]:
    """(--port, --location) of a node on a free port of 127.0.0.1."""
    (port,) = free_ports(1)
    return f"tcp:{port}:interface=127.0.0.1", f"tcp:127.0.0.1:{port}"


def create(kind: str, folder: Path, *options: str) -> None:
    """`tahoe create-<kind>`, quietly; the folder's parent must be there."""
    run_tahoe(f"create-{kind}", *options, str(folder))


def environment_without(names: Sequence[str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in names}
