"""Every family in every column of `docs/families.md`: right numbers, or a refusal that says what can't be done."""

from __future__ import annotations

import functools

import pytest
import transformers
from families import MORE
from family_matrix import COLUMNS, PAGE, WORKS, Tried, cell, families, read, table
from packaging.version import Version

pytestmark = [
    pytest.mark.filterwarnings("ignore:the model does not perform"),
    pytest.mark.filterwarnings("ignore:.*reconstructed attention without"),
]
OLD = Version(transformers.__version__) < Version("5.24")  # where some attention takes no function yet


@functools.cache
def tried(family):
    return Tried(family)


@functools.cache
def page():
    return read(PAGE.read_text())


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("family", families())
def test_a_cell_is_what_the_page_says(family, column):
    found = cell(tried(family), column)
    if found != WORKS:
        assert len(found) > 20, found
    if not OLD:
        assert found == page()[family, column]


def test_the_page_has_a_row_for_every_family_and_a_column_for_every_check():
    assert list(page()) == [(family, column) for family in families() for column in COLUMNS]
    assert table(page()) == PAGE.read_text()


def test_the_analysis_of_every_family_that_the_graph_accepts_works():
    for family in MORE:
        for column in ("walk", "patching", "edges", "attribution", "relevance", "deployed"):
            assert page()[family, column] == WORKS, (family, column)
