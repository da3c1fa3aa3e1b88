# SPDX-License-Identifier: GPL-2.0-or-later
"""The section for the bucket on Tahoe's storage status page: report.py's data as tags. docs/status.rst explains it.

Owner: pages.py. Pure functions. Text is escaped by twisted.web.template, and is printable already.
"""

from __future__ import annotations

from typing import Any, Union

from allmydata.util.abbreviate import abbreviate_space
from twisted.web.template import Tag, tags

Shown = Union[str, Tag]

STYLE = """
#tahoe-s3 table { margin: .5em 0 1em 1em; border-collapse: collapse; border: 0; }
#tahoe-s3 th, #tahoe-s3 td { padding: .2em .8em; vertical-align: top; text-align: left; }
#tahoe-s3 td { border-bottom: 1px solid #ddd; overflow-wrap: anywhere; }
#tahoe-s3 tbody th { white-space: nowrap; font-weight: normal; }
#tahoe-s3 .number { text-align: right; white-space: nowrap; }
#tahoe-s3 p.state { padding: .5em .8em; border-left: .5em solid #75d24a; background: #efe; max-width: 60em; }
#tahoe-s3 p.doubt { border-color: #e6b422; background: #fffbe6; }
#tahoe-s3 p.bad { border-color: #d00; background: #fee; }
#tahoe-s3 li { overflow-wrap: anywhere; max-width: 70em; }
#tahoe-s3 .more { color: #666; }
"""


def section(report: dict[str, Any]) -> Tag:
    """All of it."""
    return tags.div(
        tags.style(STYLE),
        tags.h2("Bucket"),
        _state(report),
        _facts(report),
        tags.h3("Requests to the service"),
        _paid(report),
        _operations(report["operations"]),
        tags.h3("Last errors"),
        _errors(report["recent_errors"]),
        tags.p(_versions(report["versions"]), class_="more"),
        id="tahoe-s3",
    )


def count(number: int) -> str:
    return f"{number:,}"


def size(size_bytes: int | None) -> str:
    """1.27 GB (1,270,000,000 bytes)"""
    if size_bytes is None:
        return "not known"
    if size_bytes < 1000:
        return f"{size_bytes} bytes"
    return f"{abbreviate_space(size_bytes)} ({size_bytes:,} bytes)"


def money(sum_: float | None, currency: str) -> str:
    """As exact as it takes to see something; "" without a price."""
    if sum_ is None:
        return ""
    text = f"{sum_:,.2f}" if sum_ == 0 or sum_ >= 1 else f"{sum_:.4f}" if sum_ >= 0.0001 else "less than 0.0001"
    return f"{text} {currency}".rstrip()


def _seconds(bound_s: float | None) -> str:
    if bound_s is None:
        return "longer"
    return f"{bound_s * 1000:g} ms" if bound_s < 1 else f"{bound_s:g} s"


def _when(iso: str) -> str:
    return iso.replace("T", " ").replace("Z", " UTC")


# the state, in one sentence


def _state(report: dict[str, Any]) -> Tag:
    if not report["usable"]:
        return _box("bad", tags.strong("The bucket cannot be used. "), _sentence(report["problem"]))
    if report["trouble"] is not None:
        said = _sentence(report["trouble"])
        return _box("bad", tags.strong("Requests to the bucket fail. "), _last_success(report), said)
    if report["last_request_failed"]:
        said = f"At {_when(report['last_error_at'])}: {report['last_error']}"
        kind = "bad" if report["last_request_refused"] else "doubt"
        return _box(kind, tags.strong("The last request to the bucket failed. "), _last_success(report), said)
    rebuild = report["rebuild"]
    if not rebuild["complete"]:
        return _box("doubt", tags.strong("In use, while the bucket is being listed. "), _progress(rebuild))
    if report["readonly"]:
        return _box("doubt", tags.strong("In use, read-only. "), "tahoe.cfg says so: no new share is accepted.")
    return _box("good", tags.strong("In use. "), _last_answer(report))


def _box(kind: str, *parts: Shown) -> Tag:
    return tags.p(*parts, class_=f"state {kind}")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _last_success(report: dict[str, Any]) -> str:
    last = report["last_success_at"]
    return f"None has succeeded since {_when(last)}. " if last else "None has succeeded yet. "


def _progress(rebuild: dict[str, Any]) -> str:
    known = "The index answers for all of it." if rebuild["index_answers_for_all"] else (
        "What has not been listed is looked up when a client asks for it."
    )  # fmt: skip
    halted = f" It does not go on at the moment: {_sentence(rebuild['problem'])}" if rebuild["problem"] else ""
    return f"{100 * rebuild['part']:.0f}% of it, {count(rebuild['keys'])} keys so far. {known}{halted}"


def _last_answer(report: dict[str, Any]) -> str:
    last = report["last_answer_at"]
    return f"The service answered last at {_when(last)}." if last else ""


# what there is


def _facts(report: dict[str, Any]) -> Tag:
    so_far = "" if report["counts_are_complete"] else " so far; not all of the bucket is known yet"
    rows: list[tuple[str, Shown]] = [
        ("Service", f"{report['service'] or 'not known'}, region {report['region']}"),
        ("Bucket", report["bucket"] or "not known"),
        ("Prefix", report["prefix"] or "none"),
        ("Owner", _owner(report["owner"])),
        ("Shares", f"{count(report['shares'])} of {count(report['storage_indexes'])} files and directories{so_far}"),
        ("Their size in the bucket", size(report["share_bytes"])),
        ("Lease objects", size(report["lease_bytes"])),
        ("Keys that are not ours", count(report["foreign_keys"])),
        ("Capacity (s3.capacity)", _capacity(report)),
        ("Uploads under way", _uploads(report["uploads"])),
        ("Clock of the service", _clock(report["clock_difference"])),
        ("Storage costs a month", money(report["storage_cost_a_month"], report["currency"]) or "no price given"),
    ]
    return tags.table(tags.tbody([tags.tr(tags.th(name), tags.td(shown)) for name, shown in rows]))


def _owner(owner: dict[str, str] | None) -> Shown:
    if owner is None:
        return "this node has not claimed the bucket since its start"
    return tags.span(
        "this node, ", tags.code(owner["nodeid"]), f", since {_when(owner['since'])}",
        tags.span(", instance ", tags.code(owner["instance"]), class_="more"),
    )  # fmt: skip


def _capacity(report: dict[str, Any]) -> str:
    capacity = report["capacity_bytes"]
    if capacity is None:
        return "no limit given"
    promised = report["promised_bytes"]
    more = f", {abbreviate_space(promised)} promised to uploads" if promised else ""
    return f"{size(capacity)}, {100 * report['share_bytes'] / capacity:.1f}% used{more}"


def _uploads(uploads: dict[str, int]) -> str:
    if not uploads["count"]:
        return "none"
    return (
        f"{count(uploads['count'])} of {abbreviate_space(uploads['allocated_bytes'])} together: "
        f"{abbreviate_space(uploads['written_bytes'])} written by clients, "
        f"{abbreviate_space(uploads['arrived_bytes'])} of that in the bucket"
    )


def _clock(difference_s: float | None) -> str:
    if difference_s is None:
        return "not known yet"
    if abs(difference_s) < 2:
        return "agrees with this machine's"
    how = "ahead of" if difference_s > 0 else "behind"
    return f"{abs(difference_s):,.0f} seconds {how} this machine's"


# requests


def _paid(report: dict[str, Any]) -> Tag:
    today, since_start = report["requests"]["today"], report["requests"]["since_start"]
    currency = report["currency"]
    has_costs = today["costs"]["sum"] is not None
    rows = [
        ("PUT, COPY, POST, LIST", "put", "put", count),
        ("GET and others", "get", "get", count),
        ("Deletions and aborts", "delete", "", count),
        ("Sent", "bytes_up", "", abbreviate_space),
        ("Received", "bytes_down", "transfer_out", abbreviate_space),
    ]
    head = ["", f"Today, since {today['since'][11:16]} UTC", f"Since the node's start, {_when(since_start['since'])}"]
    body = [
        _row(name, [_with_cost(column, key, price, shown, currency) for column in (today, since_start)])
        for name, key, price, shown in rows
    ]
    if has_costs:
        body.append(_row("Costs", [money(column["costs"]["sum"], currency) for column in (today, since_start)]))
    return _table(head, body)


def _with_cost(column: dict[str, Any], key: str, price: str, shown: Any, currency: str) -> Shown:
    text = shown(column[key])
    cost = money(column["costs"][price], currency) if price else ""
    return tags.span(text, tags.span(f" = {cost}", class_="more")) if cost else text


def _operations(operations: dict[str, Any]) -> Tag:
    head = ["Operation", "Requests", "Retries", "Failed", "Sent", "Received", "Half within", "99% within"]
    body = [
        _row(name, [
            count(row["requests"]), count(row["retries"]), _failed(row["errors"]), abbreviate_space(row["bytes_up"]),
            abbreviate_space(row["bytes_down"]), _seconds(row["half_within"]), _seconds(row["most_within"]),
        ])
        for name, row in operations.items()
    ]  # fmt: skip
    return _table(head, body)


def _failed(errors: dict[str, int]) -> Shown:
    if not errors:
        return "0"
    detail = ", ".join(f"{code} {count(number)}" for code, number in errors.items())
    return tags.span(count(sum(errors.values())), tags.span(f" ({detail})", class_="more"))


def _table(head: list[str], body: list[Tag]) -> Tag:
    first, *others = head
    titles = [tags.th(first), *(tags.th(title, class_="number") for title in others)]
    return tags.table(tags.thead(tags.tr(titles)), tags.tbody(body))


def _row(name: str, cells: list[Shown]) -> Tag:
    return tags.tr(tags.th(name), [tags.td(cell, class_="number") for cell in cells])


def _errors(errors: list[dict[str, str]]) -> Tag:
    if not errors:
        return tags.p("None since the node's start.")
    return tags.ul([tags.li(f"{_when(error['at'])}: {error['text']}") for error in errors])


def _versions(found: dict[str, str]) -> str:
    return (
        f"tahoe-s3 {found['tahoe-s3']}, libcurl {found['libcurl']}, {found['tls'].replace('/', ' ')}, "
        f"Tahoe-LAFS {found['tahoe-lafs']}, Python {found['python']}"
    )
