"""Addresses of the UI's pages."""

from __future__ import annotations

from tlresearch.tracking.addresses import compare_url, runs_url


def test_addresses_of_the_ui() -> None:
    assert runs_url("http://h:1/", "3") == "http://h:1/#/experiments/3/runs?workflowType=machine_learning"
    assert compare_url("http://h:1", ["a", "b"], ["3", "3"]) == (
        "http://h:1/#/compare-runs?runs=%5B%22a%22%2C%22b%22%5D&experiments=%5B%223%22%5D&workflowType=machine_learning"
    )
