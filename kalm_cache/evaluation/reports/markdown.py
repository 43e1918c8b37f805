"""Results as Markdown: the tables that people read. Measures nothing.

A reranker's systems are grouped by codec and first-stage weight, with a column for each pooling ratio r.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from kalm_cache.evaluation.measures.metrics import MEASURES
from kalm_cache.evaluation.measures.significance import Comparison
from kalm_cache.evaluation.reports.results import CollectionResult, SystemResult

PLOTS = {  # file name -> what it shows
    "quality-ratio.png": "nDCG@10 against the pooling ratio r",
    "quality-bytes.png": "nDCG@10 against the bytes of a passage's states",
    "quality-ms.png": "nDCG@10 against milliseconds a query, median of reading and decoding",
    "reliability.png": "how often passages of a P(yes) are relevant",
}


def markdown_report(results: Sequence[CollectionResult], command: str, machine: str) -> str:
    """The whole report; `command` is what it was made with, `machine` what on."""
    parts = [f"# Evaluation\n\n```bash\n{command}\n```\n\n{machine} {_conditions(results)}"]
    parts += [f"## {measure}\n\n{_quality_tables(results, measure)}" for measure in MEASURES[:1]]
    parts.append(f"## Bytes and milliseconds\n\n{_cost_tables(results)}")
    parts += [f"![{text}]({name})\n\n`{command}`" for name, text in PLOTS.items()]
    parts += [_collection(result) for result in results]
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def codecs_of(results: Sequence[CollectionResult]) -> list[str]:
    """The codecs of the reranker's points, in their order."""
    return list(dict.fromkeys(point.cost.codec or "" for result in results for point in result.of_kind("reranker")))


def chunk_sizes_of(results: Sequence[CollectionResult]) -> list[int]:
    """The pooling ratios of the reranker's points, rising."""
    return sorted({point.cost.chunk_size or 0 for result in results for point in result.of_kind("reranker")})


def weights_of(results: Sequence[CollectionResult]) -> list[float]:
    """The first stage's weights that points were interpolated at, rising; 0, the reranker alone, is the first."""
    return sorted(
        {0.0, *(system.cost.first_stage_weight for result in results for system in result.of_kind("interpolated"))}
    )


def point_of(result: CollectionResult, codec: str, chunk_size: int, weight: float = 0.0) -> SystemResult | None:
    """The point of a codec and a ratio; with a weight, that point interpolated with the first stage."""
    points = result.of_kind("interpolated" if weight else "reranker")
    wanted = (codec, chunk_size, weight)
    return next((p for p in points if (p.cost.codec, p.cost.chunk_size, p.cost.first_stage_weight) == wanted), None)


def others_of(results: Sequence[CollectionResult]) -> list[str]:
    """The names of the first stages and bi-encoders, in their order."""
    kinds = ("first stage", "bi-encoder")
    return list(dict.fromkeys(system.name for result in results for system in result.systems if system.kind in kinds))


def mean_over(results: Sequence[CollectionResult], value: Callable[[CollectionResult], float | None]) -> float | None:
    """The mean over collections; `None` where one of them has no such value."""
    values = [value(result) for result in results]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _conditions(results: Sequence[CollectionResult]) -> str:
    facts = results[0].facts
    depths = " and ".join(sorted({str(result.k) for result in results}))
    models = ", ".join(dict.fromkeys(f"{result.facts.model} ({result.facts.dtype})" for result in results))
    return (
        f"Model {models}; the first {depths} candidates of the first stage `{facts.candidates}` ranked again. "
        "Unjudged passages count as not relevant."
    )


def _quality_tables(results: Sequence[CollectionResult], measure: str) -> str:
    others, chunk_sizes = others_of(results), chunk_sizes_of(results)
    parts = []
    for codec, weight in itertools.product(codecs_of(results), weights_of(results)):
        columns: list[Callable[[CollectionResult], float | None]] = []
        columns += [lambda result, name=name: _mean(_named(result, name), measure) for name in others]  # type: ignore[misc]
        columns += [
            lambda result, point=(codec, r, weight): _mean(point_of(result, *point), measure)  # type: ignore[misc]
            for r in chunk_sizes
        ]
        rows = [
            [f"{result.name} {result.split}", f"{result.queries:,}", *(_number(column(result)) for column in columns)]
            for result in results
        ]
        if len(results) > 1:
            rows.append(["mean", "", *(_number(mean_over(results, column)) for column in columns)])
        header = ["collection", "queries", *others, *(f"r = {chunk_size}" for chunk_size in chunk_sizes)]
        interpolated = f", margin + {weight:g} x the first stage's z-score" if weight else ""
        parts.append(f"States in {codec}{interpolated}:\n\n{table(header, rows)}")
    return "\n\n".join(parts)


def _cost_tables(results: Sequence[CollectionResult]) -> str:
    rows = []
    for codec in codecs_of(results):
        for chunk_size in chunk_sizes_of(results):
            points = [point for result in results if (point := point_of(result, codec, chunk_size))]
            costs = [point.cost for point in points]
            if len(points) == len(results):
                rows.append(
                    [
                        codec,
                        str(chunk_size),
                        *(_number(_average([getattr(cost, name) for cost in costs]), 1) for name in _COSTS),
                        _number(_average([point.rerank_ms for point in points]), 1),
                    ]
                )
    header = ["codec", "r", "bytes a passage", "read ms", "decode ms", "rerank ms"]
    text = "Means over the collections; bytes of the states' file, milliseconds a query (medians)."
    return f"{text}\n\n{table(header, rows)}"


_COSTS = ("bytes_per_passage", "read_ms", "decode_ms")


def _collection(result: CollectionResult) -> str:
    facts = result.facts
    sampled = "" if result.queries == result.sampled_from else f", a fixed sample of {result.sampled_from:,}"
    missing = f", {facts.missing_passages} relevant passages not in the index" if facts.missing_passages else ""
    counts = f"{result.queries:,} queries{sampled}, {facts.passages:,} passages{missing}."
    parts = [
        f"## {result.name} {result.split}\n\n{counts}",
        _systems(result),
        f"Differences are of nDCG@10 to `{facts.candidates}`, paired over the queries, with their 95 % confidence "
        "interval; p of the t-test, of the randomisation test, and of the latter corrected by Holm over this table.",
    ]
    reference = next((system.to_reference for system in result.systems if system.to_reference), None)
    if reference is not None:
        rows = [[system.name, *_comparison(system.to_reference)] for system in result.systems if system.to_reference]
        parts.append(table([f"to `{reference.baseline}`", *_COMPARED], rows))
    parts += _calibration(result)
    return "\n\n".join(parts)


_COMPARED = ["difference", "95 % interval", "effect d", "better/worse", "p (t)", "p (random.)", "p (Holm)"]


def _systems(result: CollectionResult) -> str:
    rows = []
    for system in result.systems:
        cells = [system.name, *(_number(system.means[measure]) for measure in MEASURES)]
        cells += [_number(system.cost.bytes_per_passage, 0), _number(system.cost.search_ms or system.rerank_ms, 1)]
        rows.append([*cells, *_comparison(system.to_candidates)])
    return table(["system", *MEASURES, "bytes a passage", "ms", *_COMPARED], rows)


def _comparison(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return [""] * len(_COMPARED)
    interval = f"{comparison.low:+.4f} … {comparison.high:+.4f}"
    p_values = [f"{p:.4f}" for p in (comparison.p_t, comparison.p_randomisation, comparison.p_holm)]
    return [
        f"{comparison.difference:+.4f}",
        interval,
        f"{comparison.effect:+.2f}",
        f"{comparison.better}/{comparison.worse}",
        *p_values,
    ]


def _calibration(result: CollectionResult) -> list[str]:
    rows, shifts = [], []
    for system in result.of_kind("reranker"):
        if (found := system.calibration) is not None:
            cells = [system.name, f"{found.pairs:,}", f"{found.relevant:.4f}", f"{found.ece:.4f}", f"{found.brier:.4f}"]
            chosen = found.threshold
            values = () if chosen is None else (chosen.score, chosen.precision, chosen.recall, chosen.f1)
            rows.append([*cells, *([f"{value:.3f}" for value in values] or [""] * 4)])
        if (moved := system.shift) is not None:
            numbers = [moved.mean, moved.deviation, moved.relevant, moved.others]
            cells = [system.name, moved.reference, *(_number(number, 3) for number in numbers)]
            shifts.append(
                [*cells, _number(moved.correlation, 3), _number(system.tau, 3), f"{moved.decisions_changed:.4f}"]
            )
    header = ["P(yes)", "pairs", "relevant", "ECE", "Brier", "threshold", "precision", "recall", "F1"]
    parts = [f"{table(header, rows)}\n\nThresholds: best F1 on half of the queries, measured on the other half."]
    if shifts:
        header = [
            "margins",
            "against",
            "shift",
            "± s.d.",
            "of relevant",
            "of others",
            "correlation",
            "Kendall's τ",
            "decisions changed",
        ]
        parts.append(table(header, shifts))
    return parts if rows else []


def _named(result: CollectionResult, name: str) -> SystemResult | None:
    return next((system for system in result.systems if system.name == name), None)


def _mean(system: SystemResult | None, measure: str) -> float | None:
    return None if system is None else system.means[measure]


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
