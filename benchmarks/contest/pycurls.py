# SPDX-License-Identifier: GPL-2.0-or-later
"""pycurl, three ways. Wheels of pycurl bring a libcurl of their own, newer than many systems'; built from source it
uses the system's, as the engine does. Unsigned it knows nothing of S3; the wheel's libcurl can sign by itself
(CURLOPT_AWS_SIGV4); that of Debian 12 does so without x-amz-content-sha256, which S3 refuses."""
from __future__ import annotations

import importlib
import importlib.util
import io
import os
from pathlib import Path
from typing import Any

from contest.load import ACCESS_KEY_ID, BUCKET, REGION, SECRET, Load, Payload, Site, check

FOLDER_VARIABLE = "BENCH_PYCURL_SYSTEM"
"""Names the folder of a pycurl that was built against the system's libcurl (make bench-compare sets it)."""
BUFFER_BYTES = 64 * 1024
"""As in bare_curl.c and in the engine; pycurl's and libcurl's default is 16 KiB."""


def wheel() -> Any:
    """The installed pycurl; ImportError."""
    return importlib.import_module("pycurl")


def from_system() -> Any:
    """The other one, in this process too; ImportError where it is not there."""
    folder = os.environ.get(FOLDER_VARIABLE)
    found = sorted(Path(folder, "pycurl").glob("_pycurl*.so")) if folder else []
    spec = importlib.util.spec_from_file_location("system_libcurl._pycurl", found[0]) if found else None
    if spec is None or spec.loader is None:
        raise ImportError(f"no pycurl in the folder that {FOLDER_VARIABLE} names")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class PyCurl:
    """Handles are kept and only what differs is set for each request; bodies arrive in a BytesIO."""

    def __init__(self, site: Site, module: Any, kind: str, *, sigv4: bool = False) -> None:
        self._curl = module
        self._site = site
        self._sigv4 = sigv4
        self.payload: Payload = "signed" if sigv4 else "none"
        self.name = f"pycurl, {kind} {module.version_info()[1]}" + (", SIGV4" if sigv4 else "")
        self._multi = module.CurlMulti()
        self._free: list[Any] = []
        self._set_for: tuple[str, str, int] | None = None

    def _new(self, load: Load, body: bytes) -> Any:
        curl = self._curl
        easy = curl.Curl()
        easy.setopt(curl.URL, f"{self._site.url}/{BUCKET}/{load.key}")
        easy.setopt(curl.PROXY, "")
        easy.setopt(curl.NOSIGNAL, 1)
        easy.setopt(curl.FAILONERROR, 1)
        easy.setopt(curl.BUFFERSIZE, BUFFER_BYTES)
        easy.setopt(curl.UPLOAD_BUFFERSIZE, BUFFER_BYTES)
        if self._site.ca_file:
            easy.setopt(curl.CAINFO, self._site.ca_file)
        if self._sigv4:
            easy.setopt(curl.AWS_SIGV4, f"aws:amz:{REGION}:s3")
            easy.setopt(curl.USERPWD, f"{ACCESS_KEY_ID}:{SECRET}")
        if load.method == "PUT":
            easy.setopt(curl.POST, 1)
            easy.setopt(curl.POSTFIELDS, body)
            easy.setopt(curl.CUSTOMREQUEST, "PUT")
            easy.setopt(curl.HTTPHEADER, ["Expect:", "Content-Type: application/octet-stream"])
        return easy

    def _handle(self, load: Load, index: int, body: bytes, keep: dict[Any, io.BytesIO]) -> Any:
        easy = self._free.pop() if self._free else self._new(load, body)
        keep[easy] = io.BytesIO()
        easy.setopt(self._curl.WRITEDATA, keep[easy])
        if load.ranged:
            easy.setopt(self._curl.RANGE, "{}-{}".format(*load.range_of(index)))
        return easy

    def _ended(self, load: Load, easy: Any, keep: dict[Any, io.BytesIO]) -> None:
        data = keep.pop(easy).getvalue()
        if load.method == "GET":
            check(load, data)
        self._free.append(easy)

    def run(self, load: Load, count: int) -> None:
        if self._set_for != (load.method, load.key, load.size):  # options of another load would stay
            self._set_for = (load.method, load.key, load.size)
            self._free.clear()
        body = load.body
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
        self._free.clear()
        self._multi.close()
