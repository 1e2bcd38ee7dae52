from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.pressure.rollover import after_a_blip, under_attack

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.pressure.rows import Row


pytestmark = pytest.mark.no_cover  # Tracing would double the time.


@pytest.mark.parametrize("measured", [after_a_blip, under_attack])
def test_bounds_are_kept(measured: Callable[[int], list[Row]]) -> None:
    """A few runs of each scenario, in which chance alone could not hide a change of the rules."""
    assert [] == [row for row in measured(2) if not row.is_kept]
