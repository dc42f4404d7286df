"""Pictures of what looks like parts of charts: each is its index's, and says what it may hold."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from saccade.benches.judges import KINDS
from saccade.worlds.lookalikes import SORTS, lookalike


@pytest.mark.parametrize("index", range(len(SORTS)))
def test_a_picture_is_the_same_whenever_it_is_made_and_others_of_its_sort_differ(
    index: int,
) -> None:
    item = lookalike(index)
    assert lookalike(index).image.tobytes() == item.image.tobytes()
    assert lookalike(index + len(SORTS)).image.tobytes() != item.image.tobytes()
    assert np.asarray(item.image).std() > 5
    assert not item.is_told
    assert item.also <= set(KINDS)


def test_what_a_user_has_set_in_matplotlib_changes_nothing() -> None:
    code = (
        "import matplotlib; matplotlib.rcParams['axes.facecolor'] = 'red';"
        "from saccade.worlds.lookalikes import lookalike; import hashlib;"
        "print(hashlib.sha256(lookalike(5).image.tobytes()).hexdigest())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == hashlib.sha256(lookalike(5).image.tobytes()).hexdigest()
