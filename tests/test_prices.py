# SPDX-License-Identifier: GPL-2.0-or-later
"""s3.price.* in tahoe.cfg: all optional, none built in; and what things cost at them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tahoe_s3 import errors
from tahoe_s3.prices import Prices

from .test_config import NodeFolder


@pytest.fixture
def node(tmp_path: Path) -> NodeFolder:
    return NodeFolder(tmp_path)


def test_no_price_is_built_in(node: NodeFolder) -> None:
    prices = node.read().prices
    assert prices == Prices(None, None, None, None, "")
    assert prices.of_puts(5) is prices.of_gets(5) is prices.of_transfer(5) is prices.of_month(5) is None


def test_what_things_cost(node: NodeFolder) -> None:
    given = {"put_requests": "0.005", "get_requests": "0.0004", "storage": "0.023", "transfer_out": "0.09"}
    prices = node.read(**{f"price.{name}": text for name, text in given.items()}, **{"price.currency": "EUR"}).prices
    assert prices.of_puts(2_000) == pytest.approx(0.01)
    assert prices.of_gets(1_000_000) == pytest.approx(0.4)
    assert prices.of_month(10 * 2**30) == pytest.approx(0.23)
    assert prices.of_transfer(2**29) == pytest.approx(0.045)
    assert prices.currency == "EUR"


def test_a_price_of_nothing_is_a_price(node: NodeFolder) -> None:
    prices = node.read(**{"price.get_requests": "0"}).prices
    assert prices.of_gets(1000) == 0.0
    assert prices.of_puts(1000) is None


@pytest.mark.parametrize("text", ["0,005", "-1", "$0.005", "1e3", "nan", "inf", "0.005 USD", "1/1000", "12345678901"])
@pytest.mark.parametrize("key", ["put_requests", "get_requests", "storage", "transfer_out"])
def test_what_is_no_price(node: NodeFolder, key: str, text: str) -> None:
    with pytest.raises(errors.BadValue) as caught:
        node.read(**{f"price.{key}": text})
    assert str(caught.value).startswith(f"[storage]s3.price.{key} in tahoe.cfg is '{text}'; write only a number, such")


@pytest.mark.parametrize("word", ["EUR", "CHF", "Kč", "$", "€"])
def test_currencies(node: NodeFolder, word: str) -> None:
    assert node.read(**{"price.currency": word}).prices.currency == word


@pytest.mark.parametrize("word", ["US dollars", "<b>", "EUR1", "euroeuroeuro"])
def test_what_is_no_currency(node: NodeFolder, word: str) -> None:
    with pytest.raises(errors.BadValue, match="write one word of letters, such as EUR"):
        node.read(**{"price.currency": word})


def test_an_unknown_price_is_told_the_nearest(node: NodeFolder) -> None:
    with pytest.raises(errors.UnknownKey, match=r"write s3\.price\.put_requests, the nearest one"):
        node.read(**{"price.put_request": "1"})
