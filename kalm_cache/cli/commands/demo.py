"""`kalm-cache demo`: index the bundled corpus, ask it a few questions, show what reranking changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kalm_cache.cli.output import exit_codes, human_bytes, stdout_console
from kalm_cache.cli.progress import show_progress
from kalm_cache.cli.tables import ranking_table, timings_line

if TYPE_CHECKING:
    from kalm_cache.evaluation import BeirTask
    from kalm_cache.index.passage_index import PassageIndex

CANDIDATES = 50
MEASURED = 100  # questions behind the closing line
CHUNK_SIZES = (1, 4)  # stored at the first, served at each
WEIGHT = 1.0  # of the first stage's z-score, in the second half of the closing line
SHOWN = (  # picked because the relevant passage moves up; the closing line is an average over many
    "572685cd5951b619008f7574",
    "56dfa24a38dc421700152144",
    "56e775ec00c9c71400d7715e",
    "572860e03acd2414000df97a",
)
BUNDLED_DEMO = Path(__file__).parents[2] / "bundled" / "demo"


def demo(
    index: Annotated[Path, typer.Option("--index", help="Where the demo's index goes.")] = Path("demo-index"),
    top_n: Annotated[int, typer.Option("--top-n", min=1, help="Results shown for each question.")] = 5,
) -> None:
    """Index the bundled corpus with the bundled model, offline, and show answers before and after reranking."""
    from kalm_cache.evaluation import load_beir
    from kalm_cache.index.passage_index import PassageIndex

    with exit_codes(resumable=True):
        _build(index)
        console = stdout_console()
        with PassageIndex.open(index) as passages:
            task = load_beir(BUNDLED_DEMO)
            for query_id in SHOWN:
                answer = passages.search(task.queries[query_id], k=CANDIDATES, top_n=top_n)
                console.print()
                console.print(ranking_table(answer, frozenset(task.qrels[query_id])))
                console.print(timings_line(answer))
            console.print()
            console.print(_measured(passages, task), soft_wrap=True)
            console.print(f'Ask it yourself: kalm-cache search "your question" --index {index}')


def _build(index: Path) -> None:
    from indexer.build.index_job import is_built, load_encoders, run_index_job
    from indexer.corpus import read_corpus
    from kalm_cache.settings import Settings

    # model_construct ignores the environment: the demo is always the same
    settings = Settings.model_construct(chunk_size=CHUNK_SIZES[0])
    encoders = load_encoders(settings)
    console = stdout_console()
    if is_built(index, encoders):
        console.print(f"Using the index in {index}; remove it to see it built.")
        return
    corpus = BUNDLED_DEMO / "corpus.jsonl.zst"
    total = sum(1 for _ in read_corpus(corpus))
    with show_progress(total) as on_progress:
        report = run_index_job(
            read_corpus(corpus), index, settings, encoders, on_reject=lambda line: None, on_progress=on_progress
        )
    console.print(
        f"Indexed {report.passages:,} Wikipedia passages ({report.tokens:,} tokens) in {report.seconds:.1f} s: "
        f"{human_bytes(report.payload_bytes / max(report.passages, 1))} of states each, "
        f"{human_bytes(report.file_bytes)} on disk in all.",
        soft_wrap=True,
    )


def _measured(passages: PassageIndex, task: BeirTask) -> str:
    """One line over many questions: the few shown above prove nothing."""
    from kalm_cache.evaluation import evaluate

    reports = evaluate(
        passages, task, k=CANDIDATES, chunk_sizes=CHUNK_SIZES, first_stage_weights=[WEIGHT], max_queries=MEASURED
    )
    margin_alone, interpolated = (
        " and ".join(
            f"{report.reranked.ndcg_at_10:.3f} at chunk size {report.chunk_size}"
            for report in reports
            if report.first_stage_weight == weight
        )
        for weight in (0.0, WEIGHT)
    )
    return (
        f"Over {MEASURED} questions of the same set: nDCG@10 {reports[0].first_stage.ndcg_at_10:.3f} before reranking "
        f"{CANDIDATES} candidates; after it {margin_alone}, read from the same stored states; {interpolated} where "
        f"the first stage's score counts too (--first-stage-weight {WEIGHT:g}, the default of tiny)."
    )
