"""`kalm-cache search`: one question to an index."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.filters import parsed_fields, parsed_filter
from kalm_cache.cli.index_places import index_to_read
from kalm_cache.cli.output import exit_codes, print_json, stdout_console


@dataclass(frozen=True, slots=True)
class RankingOptions:
    """How many candidates a search reranks, how many it shows, and in which order."""

    panel: ClassVar = "Ranking"
    k: opt.Candidates = None
    top_n: Annotated[int | None, typer.Option("--top-n", help="Results shown.")] = None
    chunk_size: opt.ChunkSize = None
    first_stage: opt.FirstStageMode = None
    first_stage_weight: Annotated[
        str | None,
        typer.Option(
            "--first-stage-weight",
            help="Order by margin + this x the first stage's z-score; 0: margin; auto: calibrated.",
        ),
    ] = None
    min_probability: Annotated[
        float | None, typer.Option("--min-probability", help="Leave results below it out; takes a calibration.")
    ] = None
    instruction: opt.Instruction = None


def search(
    query: Annotated[str, typer.Argument(help="The question.")],
    index: opt.IndexPlace,
    ranking: RankingOptions,
    model: opt.ModelOptions,
    config: opt.ConfigFile = None,
    codec: opt.Codec = None,
    filter: opt.Filter = None,
    fields: opt.Fields = None,
    json: opt.AsJson = False,
) -> None:
    """First stage, then cached rerank: the passages that answer a query, best first."""
    from kalm_cache.index.from_settings import open_index

    with exit_codes():
        wanted, names = parsed_filter(filter), parsed_fields(fields)
        settings = opt.settings_from(config, ranking, model, codec=codec)
        with index_to_read(index, settings) as folder, open_index(folder, settings) as passages:
            answer = passages.search(
                query,
                k=settings.k,
                top_n=settings.top_n,
                first_stage=settings.first_stage,
                first_stage_weight=settings.first_stage_weight_for(passages.generation.manifest.model),
                min_probability=settings.min_probability,
                filter=wanted,
                fields=names,
                instruction=settings.instruction,
                system_instruction=settings.system_instruction,
            )
    if json:
        print_json(asdict(answer))
    else:
        from kalm_cache.cli.tables import ranking_table, timings_line

        stdout_console().print(ranking_table(answer), timings_line(answer))
