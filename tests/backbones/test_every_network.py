"""Networks of all libraries are taken apart, and give at every boundary what they give as a whole."""

from __future__ import annotations

import logging

import pytest

from tests.backbones.every_network import DIFFERS, GROUPS, NOT_CUT, examine

TENTH = [(group, name) for group, names in GROUPS.items() if group != "timm" for name in names[::10]]
REST = [
    (group, name) for group, names in GROUPS.items() if group != "timm" for name in names if (group, name) not in TENTH
]


def test_lists() -> None:
    assert len(GROUPS["transformers"]) == 154
    assert len(GROUPS["further"]) >= 140
    assert len(GROUPS["timm"]) == 141
    assert len(GROUPS["public"]) == 10


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("group", "name"), [*TENTH, *(pytest.param(*network, marks=pytest.mark.networks) for network in REST)]
)
def test_equal_at_every_boundary(group: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    if group != "public":
        pytest.importorskip("transformers", reason="the extra text is not installed")
    if name in DIFFERS:
        with pytest.raises(AssertionError):  # once it is mended, its entry goes
            examine(group, name)
        return
    with caplog.at_level(logging.WARNING):
        found = examine(group, name)
    if name in NOT_CUT:
        assert found.way == "children"
        assert "runs only as a whole" in caplog.text
    else:
        assert found.way != "children"
        assert found.stages > 1
