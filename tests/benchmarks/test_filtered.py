from __future__ import annotations

from benchmarks import filtered
from tests.benchmarks.conftest import Run


def test_a_filtered_search_is_compared_with_an_exact_one_by_share(run_benchmark: Run) -> None:
    lines, _ = run_benchmark(filtered.main, "--passages", 3000, "--dimension", 8, "--queries", 3, "--types", "flat,ivf")
    assert [(line["type"], line["share"]) for line in lines] == [
        (kind, share) for kind in ("flat", "ivf") for share in filtered.SHARES
    ]
    assert [line["recall_inside"] for line in lines if line["type"] == "flat"] == [1.0] * len(filtered.SHARES)
    assert [line["matching"] for line in lines[:5]] == [3000, 1500, 300, 30, 3]
