# SPDX-License-Identifier: GPL-2.0-or-later
"""Tahoe's own web pages for a node on a bucket: /storage with a section for the bucket, /statistics as OpenMetrics.

Both are Tahoe's with something added: the stock template gets one more element, the stock JSON one more key. plugin.py
lets Tahoe's classes call these functions for a node on a bucket. What is shown comes from report.py. All text goes
through twisted.web.template, which escapes it.

Owner: Tahoe's web server, one object a request. Thread: the reactor's. Errors: Tahoe's error page, with a traceback in
the log. Limits: those of report.py.
"""

from __future__ import annotations

from typing import Any

from allmydata.util import jsonbytes as json
from allmydata.web.common import render_exception
from allmydata.web.status import Statistics
from allmydata.web.storage import StorageStatus, StorageStatusElement
from twisted.web.iweb import ITemplateLoader
from twisted.web.template import Tag, renderElement, renderer, tags
from zope.interface import implementer

from tahoe_s3.bucket_section import section
from tahoe_s3.openmetrics import of_node

DISK_NOTE = (
    "These numbers are those of the disk that holds shares on their way to the bucket, copies of some, and the index. "
    "The shares themselves lie in the bucket."
)


@implementer(ITemplateLoader)
class _WithBucket:
    """Tahoe's template with a place for our section behind its heading; at its end, should it have none."""

    def __init__(self, stock: Any) -> None:
        self._stock = stock
        self._document: list[Any] | None = None

    def load(self) -> list[Any]:
        if self._document is None:
            document = [node.clone() if isinstance(node, Tag) else node for node in self._stock.load()]
            places = [found for node in document for found in _headings(node)]
            children, at = places[0] if places else (document, len(document))
            children[at:at] = [
                tags.div(render="tahoe_s3_bucket"), tags.h2("Local disk"), tags.p(DISK_NOTE, class_="tahoe-s3-note")
            ]  # fmt: skip
            self._document = document
        return self._document


def _headings(node: Any) -> list[tuple[list[Any], int]]:
    """The places right behind each <h1> below a tag: a list of children, and an index."""
    if not isinstance(node, Tag):
        return []
    found = []
    for number, child in enumerate(node.children):
        if isinstance(child, Tag):
            found += [(node.children, number + 1)] if child.tagName == "h1" else _headings(child)
    return found


class BucketStatusElement(StorageStatusElement):
    """The status page with the section."""

    loader = _WithBucket(StorageStatusElement.loader)

    @renderer
    def tahoe_s3_bucket(self, _request: Any, tag: Tag) -> Tag:
        return tag(section(self._storage.bucket_report()))


def storage_html(page: StorageStatus, req: Any) -> Any:
    """In place of StorageStatus.render_HTML."""
    return renderElement(req, BucketStatusElement(page._storage, page._nickname))


def storage_json(page: StorageStatus, stock_text: str) -> str:
    """What StorageStatus.render_JSON gave, and the report."""
    found = json.loads(stock_text)
    found["tahoe_s3"] = page._storage.bucket_report()
    return str(json.dumps(found, indent=1)) + "\n"


@render_exception
def openmetrics(page: Statistics, req: Any) -> str:
    """In place of Statistics.render_OPENMETRICS.

    Tahoe's own makes a metric "...add-lease" once a client has added a lease: no parser takes such a name, and with it
    the whole page is lost.
    """
    req.setHeader("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
    server = next(producer for producer in page._provider.stats_producers if hasattr(producer, "bucket_report"))
    return of_node(page._provider.get_stats(), server.bucket_report())
