"""Failures as lines: which are a user's, which are our own mistakes."""

import pytest

from cluster.errors import explained


def test_a_package_that_is_not_installed_is_named_with_what_installs_it() -> None:
    line = "found no package torch, which this command needs: pip install 'edge-opd[run]' has all of them"
    assert explained(ModuleNotFoundError("No module named 'torch'", name="torch")) == ([line], 1)


@pytest.mark.parametrize("name", ["cluster.nothing", "evidence"])
def test_a_module_of_ours_that_is_not_there_is_our_mistake(name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        explained(ExceptionGroup("", [ModuleNotFoundError("", name=name)]))
