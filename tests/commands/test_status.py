"""What `phimoe status` writes."""

from __future__ import annotations

import pytest

from cluster.commands.status import ranges


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((), ""), ((3,), "3"), ((0, 1, 2), "0-2"), ((0, 1, 5, 8, 9), "0-1 5 8-9"), ((1, 3), "1 3")],
)
def test_experts_are_shown_as_ranges(numbers: tuple[int, ...], text: str) -> None:
    assert ranges(numbers) == text
