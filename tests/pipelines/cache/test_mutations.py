"""Caches, manifests and runs from strangers: whatever a file says, there is an error in a line, or right data.

MUTATIONS says how many of each kind. Covers pipelines.cache.bounds.
"""

import os
from pathlib import Path

import pytest

from tests.pipelines.mutations import KINDS, try_kind, write_whole

MUTATIONS = int(os.environ.get("MUTATIONS", "10"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_whole(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_file_says_there_is_a_line_or_right_data(kind, whole, tmp_path):
    outcome = try_kind(kind, whole, tmp_path / "c", range(MUTATIONS))
    assert outcome.read + outcome.refused == MUTATIONS
    assert not outcome.wrong, "\n".join(outcome.wrong)
