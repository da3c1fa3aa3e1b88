# SPDX-License-Identifier: GPL-2.0-or-later
"""parse_list() and parse_error() as Python sees them; the parsers' own tables of cases are in tests/c."""
from __future__ import annotations

import gc
import pickle
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tahoe_s3 import _native

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'


def entry(key: str, size: int = 1, storage_class: str = "STANDARD") -> str:
    return (
        f"<Contents><Key>{escape(key)}</Key><LastModified>2023-01-01T00:00:30.000Z</LastModified>"
        f"<ETag>&quot;{size:032x}&quot;</ETag><Size>{size}</Size><StorageClass>{storage_class}</StorageClass></Contents>"
    )


def listing(*entries: str, more: str = "<IsTruncated>false</IsTruncated>") -> bytes:
    return (HEAD + more + "".join(entries) + "</ListBucketResult>").encode()


def test_a_page() -> None:
    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>go+on</NextContinuationToken>"
    page = _native.parse_list(listing(entry("a", 7), entry("b/c", 8, "GLACIER"), more=more))
    assert page == _native.Page(
        [_native.Entry("a", 7, f"{7:032x}", 1672531230, "STANDARD"),
         _native.Entry("b/c", 8, f"{8:032x}", 1672531230, "GLACIER")],
        [], "go+on", False,
    )
    assert page.entries[0].storage_class == "STANDARD"


def test_entries_are_sorted_and_appear_once() -> None:
    page = _native.parse_list(listing(entry("b"), entry("a"), entry("é"), entry("b"), entry("z")))
    assert [e.key for e in page.entries] == ["a", "b", "z", "é"]


def test_keys_that_are_no_utf8_can_be_told_apart() -> None:
    page = _native.parse_list(listing(entry("a%FFb"), entry("a%FEb"), more="<EncodingType>url</EncodingType>"
                                      "<IsTruncated>false</IsTruncated>"))
    assert [e.key.encode("utf-8", "surrogateescape") for e in page.entries] == [b"a\xfeb", b"a\xffb"]


def test_v1_is_recognised_and_goes_on_from_a_marker() -> None:
    more = "<Marker></Marker><IsTruncated>true</IsTruncated>"
    page = _native.parse_list(listing(entry("a"), entry("b"), more=more))
    assert (page.v1, page.next_token) == (True, "b")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), min_size=1),
                max_size=20))
def test_any_keys_come_back(keys: list[str]) -> None:
    page = _native.parse_list(listing(*(entry(key) for key in keys)))
    assert [e.key for e in page.entries] == sorted(set(keys))


@pytest.mark.parametrize("cut", [0, 1, 50, -1, -10])
def test_a_document_that_is_cut_off_is_refused(cut: int) -> None:
    with pytest.raises(ValueError):
        _native.parse_list(listing(entry("a"))[:cut])


@pytest.mark.parametrize(
    "document",
    [b"<html><body>Welcome</body></html>", b'<!DOCTYPE x [<!ENTITY a "b">]>' + listing(), b"\xff\xfe",
     listing(entry("a")).replace(b"<Size>1</Size>", b"")],
)
def test_what_is_no_listing_is_refused_with_a_sentence(document: bytes) -> None:
    with pytest.raises(ValueError) as caught:
        _native.parse_list(document)
    assert len(str(caught.value)) > 10


@pytest.mark.parametrize("document", ["text", None, bytearray(b"x"), 5])
def test_only_bytes_are_parsed(document: object) -> None:
    with pytest.raises(TypeError):
        _native.parse_list(document)  # type: ignore[arg-type]


def test_rows_are_ordinary_named_tuples() -> None:
    row = _native.parse_list(listing(entry("a"))).entries[0]
    assert isinstance(row, tuple)
    assert row._replace(key="b").key == "b"
    assert pickle.loads(pickle.dumps(row)) == row
    assert hash(row) == hash(tuple(row))
    assert {row: 1}[_native.Entry(*row)] == 1
    assert repr(row).startswith("Entry(key='a', size=1")


def test_nothing_leaks() -> None:
    document = listing(*(entry(f"key{i}") for i in range(50)))
    for _ in range(3):
        _native.parse_list(document)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(200):
        _native.parse_list(document)
    gc.collect()
    assert len(gc.get_objects()) - before < 50


def test_an_error_document() -> None:
    error = _native.parse_error(
        b"<Error><Code>SlowDown</Code><Message>Please reduce</Message><RequestId>r</RequestId></Error>"
    )
    assert error == _native.ErrorDocument("SlowDown", "Please reduce", "", "r", "", None)
    with pytest.raises(ValueError):
        _native.parse_error(b"<html>502</html>")
