"""What the pods of the index job and the nightly reindex run, one after the other, over a bucket."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("obstore")

from kalm_cache import PassageIndex
from kalm_cache.cli.app import app
from kalm_cache.object_store.location import parse_location
from kalm_cache.object_store.store import open_store
from tests.configs.manifests import container_of, expanded, named
from tests.indexer.sharded import MANY
from tests.object_store.places import BUCKET, CREDENTIALS


@pytest.mark.slow
def test_the_jobs_build_an_index_and_bring_it_up_to_date(
    s3: tuple[str, int], mini_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, port = s3
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    places = {"CORPUS": f"{url}/corpus/", "INDEX": f"{url}/index"}
    endpoint = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ALLOW_HTTP": "true"}
    settings = {"KALM_CACHE_MODEL": str(mini_folder), "KALM_CACHE_DEVICE": "cpu"}
    for name, value in (CREDENTIALS | endpoint | settings).items():
        monkeypatch.setenv(name, value)
    corpus = open_store(parse_location(url))
    corpus.put("corpus/a.jsonl", lines_of(MANY))

    def run(kind: str, name: str, pod: int = 0) -> None:
        """A pod of the job, on a machine of its own."""
        job = named(kind, name)["spec"]
        template = job.get("jobTemplate", {"spec": job})["spec"]["template"]
        words = [expanded(word, places | {"JOB_COMPLETION_INDEX": str(pod)}) for word in container_of(template)["args"]]
        cache = {"KALM_CACHE_CACHE_FOLDER": str(tmp_path / f"{name}-{pod}")}
        done = CliRunner().invoke(app, words, env=cache)
        assert done.exit_code == 0, done.output

    run("Job", "kalm-cache-plan")
    for pod in range(named("Job", "kalm-cache-build")["spec"]["completions"]):
        run("Job", "kalm-cache-build", pod)
    run("Job", "kalm-cache-commit")
    corpus.put("corpus/b.jsonl", lines_of({"owls": "Owls hunt at night."}))
    run("CronJob", "kalm-cache-reindex")
    pulled = tmp_path / "pulled"
    assert CliRunner().invoke(app, ["pull", places["INDEX"], str(pulled)]).exit_code == 0
    with PassageIndex.open(pulled, device="cpu") as index:
        assert len(index) == len(MANY) + 1
        found = [result.doc_id for result in index.search("owls", k=70, top_n=None).results]
        assert sorted(found) == sorted([*MANY, "owls"])


def lines_of(texts: dict[str, str]) -> bytes:
    return "".join(json.dumps({"_id": doc_id, "text": text}) + "\n" for doc_id, text in texts.items()).encode()
