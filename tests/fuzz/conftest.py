"""How hard is fuzzed: a few hundred cases as a rule, thousands with ``TLRESEARCH_FUZZ=thorough`` (`make fuzz`)."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_QUIET = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much)

settings.register_profile("quick", max_examples=40, derandomize=True, deadline=None, suppress_health_check=_QUIET)
settings.register_profile("thorough", max_examples=2000, deadline=None, database=None, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("TLRESEARCH_FUZZ", "quick"))


def cases(count: int) -> settings:
    """Settings of a test with another number of cases than others, because one of them takes longer or less long."""
    return settings(max_examples=settings().max_examples * count // 40)
