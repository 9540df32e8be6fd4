"""Collects tests/contract.py: what every graft of the registry must do."""

import pytest

pytest.register_assert_rewrite("tests.contract")

from tests.contract import *  # noqa: E402, F403
