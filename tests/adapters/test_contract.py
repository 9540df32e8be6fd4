"""Collects tests/contract.py: what every graft of the registry must do."""

from tests.contract import *  # noqa: F403
