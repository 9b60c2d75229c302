"""How often one thing is started again: a bound in a time."""

import pytest

from cluster.faults import FaultsConfig, Restarts


@pytest.mark.parametrize(
    ("most", "moments", "allowed"),
    [
        (0, [0], [False]),
        (2, [0, 10, 20, 30], [True, True, False, False]),
        # Each is forgotten once the time is over, by itself; what was refused is not counted.
        (2, [0, 60, 90, 101, 150, 161, 162], [True, True, False, True, False, True, False]),
    ],
)
def test_restarts_are_counted_within_a_time(most: int, moments: list[float], allowed: list[bool]) -> None:
    restarts = Restarts(FaultsConfig(max_restarts=most, restart_window_s=100.0))
    for moment, may in zip(moments, allowed, strict=True):
        assert restarts.are_left(moment) == may  # which counts none
        assert restarts.allow(moment) == may
