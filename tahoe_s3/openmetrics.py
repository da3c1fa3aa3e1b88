# SPDX-License-Identifier: GPL-2.0-or-later
"""Statistics as OpenMetrics text 1.0: Tahoe's own under the names that Tahoe gives them, ours as labelled families.

Tahoe's page makes a metric of every name in get_stats(), whatever characters are in it, and NaN of every None. Here
each name is made legal, what is no finite number is left out, no sample comes twice, and samples of one name stand
together. Of the numbers under `tahoe_s3.` only the families below are shown, which say the same with labels.

Owner: pages.py. Pure functions. Source: the OpenMetrics specification 1.0, "Text format".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

OWN = "tahoe_s3."
_ILLEGAL = re.compile(r"[^a-zA-Z0-9_:]")
_QUANTILE = re.compile(r"_(\d\d)_(\d)_percentile$")
_ENGINE_COUNTERS = frozenset(
    {"attempts", "retries", "retries_denied", "succeeded", "failed", "bytes_up", "bytes_down", "connections_opened",
     "connections_dropped_stale", "requests_get", "requests_head", "requests_put", "requests_post", "requests_delete"}
)  # fmt: skip

Labels = Mapping[str, str]
Sample = tuple[str, Labels, float]
"""What is put behind the family's name, labels, value."""


def of_node(stats: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """The whole page: `stats` as a StatsProvider has them, and what report.py says."""
    lines = _plain("tahoe_counters_", stats["counters"]) + _plain("tahoe_stats_", stats["stats"])
    engine = {name[len(OWN) :]: value for name, value in stats["stats"].items() if name.startswith(f"{OWN}engine.")}
    return "\n".join([*lines, *_families(report), *_engine(engine), "# EOF", ""])


def _plain(prefix: str, numbers: Mapping[str, Any]) -> list[str]:
    """As Tahoe's own page, but only what a parser takes."""
    found: dict[str, dict[str, str]] = {}
    for key, value in sorted(numbers.items()):
        if key.startswith(OWN) or not _is_number(value):
            continue
        name = prefix + key.replace(".", "_")
        quantile = _QUANTILE.search(name)
        labels = "" if quantile is None else f'{{quantile="0.{quantile[1]}{quantile[2]}"}}'
        name = _ILLEGAL.sub("_", _QUANTILE.sub("", name))
        found.setdefault(name, {}).setdefault(labels, _number(value))
    return [f"{name}{labels} {value}" for name, samples in found.items() for labels, value in samples.items()]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _number(value: float) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _family(name: str, kind: str, meaning: str, samples: Iterable[Sample], *, unit: str = "") -> list[str]:
    """Its metadata and samples; nothing at all where there is no sample. `name` ends with `unit`."""
    lines = [f"{name}{suffix}{_labels(labels)} {_number(value)}" for suffix, labels, value in samples]
    if not lines:
        return []
    units = [f"# UNIT {name} {unit}"] if unit else []
    return [f"# TYPE {name} {kind}", *units, f"# HELP {name} {meaning}", *lines]


def _labels(labels: Labels) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    inside = ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _families(report: Mapping[str, Any]) -> list[str]:
    operations = report["operations"]

    def each(key: str) -> list[Sample]:
        return [("_total", {"operation": name}, row[key]) for name, row in operations.items()]

    errors = [
        ("_total", {"operation": name, "code": code}, number)
        for name, row in operations.items() for code, number in row["errors"].items()
    ]  # fmt: skip
    return [
        *_family("tahoe_s3_build", "info", "Versions.", [("_info", _version_labels(report["versions"]), 1)]),
        *_family("tahoe_s3_requests", "counter", "Requests sent to the service, retries included.", each("requests")),
        *_family("tahoe_s3_retries", "counter", "Requests that repeated an earlier one.", each("retries")),
        *_family("tahoe_s3_errors", "counter", "Requests that failed after all attempts.", errors),
        *_family("tahoe_s3_sent_bytes", "counter", "Bodies sent.", each("bytes_up"), unit="bytes"),
        *_family("tahoe_s3_received_bytes", "counter", "Bodies received.", each("bytes_down"), unit="bytes"),
        *_family(
            "tahoe_s3_request_duration_seconds", "histogram", "How long requests took, all attempts together.",
            [sample for name, row in operations.items() for sample in _histogram(name, row)], unit="seconds",
        ),
        *_gauges(report),
    ]  # fmt: skip


def _version_labels(versions: Mapping[str, str]) -> dict[str, str]:
    return {_ILLEGAL.sub("_", name): text for name, text in versions.items()}


def _histogram(name: str, row: Mapping[str, Any]) -> Iterable[Sample]:
    for bound_s, number in row["latency"]:
        yield "_bucket", {"operation": name, "le": str(float(bound_s))}, number
    yield "_bucket", {"operation": name, "le": "+Inf"}, row["ended"]
    yield "_count", {"operation": name}, row["ended"]
    yield "_sum", {"operation": name}, row["seconds"]


def _gauges(report: Mapping[str, Any]) -> list[str]:
    uploads = report["uploads"]
    upload_bytes = [("", {"state": state}, uploads[f"{state}_bytes"]) for state in ("allocated", "written", "arrived")]
    single = [
        ("tahoe_s3_bucket_usable", "1 while the bucket can be used.", int(report["usable"]), ""),
        ("tahoe_s3_shares", "Shares in the bucket.", report["shares"], ""),
        ("tahoe_s3_share_bytes", "Their size.", report["share_bytes"], "bytes"),
        ("tahoe_s3_lease_bytes", "The size of the lease objects.", report["lease_bytes"], "bytes"),
        ("tahoe_s3_foreign_keys", "Keys in the bucket that are not ours.", report["foreign_keys"], ""),
        ("tahoe_s3_capacity_bytes", "s3.capacity, if set.", report["capacity_bytes"], "bytes"),
        ("tahoe_s3_uploads", "Shares being uploaded.", uploads["count"], ""),
        ("tahoe_s3_clock_difference_seconds", "The service's clock minus ours.", report["clock_difference"], "seconds"),
    ]
    lines = []
    for name, meaning, value, unit in single:
        samples: list[Sample] = [("", {}, value)] if _is_number(value) else []
        lines += _family(name, "gauge", meaning, samples, unit=unit)
    return lines + _family("tahoe_s3_upload_bytes", "gauge", "Bytes of these shares.", upload_bytes, unit="bytes")


def _engine(numbers: Mapping[str, float]) -> list[str]:
    """engine.bytes_up -> tahoe_s3_engine_bytes_up_total."""
    lines = []
    for name, value in sorted(numbers.items()):
        counts = name.partition(".")[2] in _ENGINE_COUNTERS
        shown = "tahoe_s3_" + _ILLEGAL.sub("_", name)
        meaning = "See ts3_engine.h."
        lines += _family(shown, "counter" if counts else "gauge", meaning, [("_total" if counts else "", {}, value)])
    return lines
