from __future__ import annotations

import pytest

# SQLAlchemy 2.1 deprecates an option that MLflow 3.17 still uses.
THIRD_PARTY = "ignore:The .*noload.* loader strategy is deprecated:DeprecationWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.filterwarnings(THIRD_PARTY))
