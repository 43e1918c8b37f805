"""`kalm-cache stats`, `verify`, `rollback` and `gc` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run
from tests.indexes import shard_of
from tests.stores import damage_record


def test_verify_names_the_damage_and_exits_with_1(run: Run, index: Path) -> None:
    assert json.loads(run("verify", "--index", index, "--json").stdout)["ok"] is True
    damage_record(shard_of(index), "bees")
    result = run("verify", "--index", index, "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["ok"]) == (1, False)
    assert any(one["doc_id"] == "bees" and one["file"].endswith("states.lmdb") for one in report["damaged"])


def test_verify_repairs_what_it_has_the_text_of_and_exits_with_0(run: Run, index: Path) -> None:
    damage_record(shard_of(index), "bees")
    result = run("verify", "--repair", "--index", index, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (report["repair"]["copied"], report["repair"]["encoded"], report["repair"]["quarantined"]) == (3, 1, [])
    assert run("verify", "--index", index).exit_code == 0


def test_verify_sets_aside_what_it_has_no_text_of_and_exits_with_3(run: Run, index: Path) -> None:
    (shard_of(index) / "passages.lmdb").write_bytes(b"")
    result = run("verify", "--repair", "--index", index)
    assert result.exit_code == 3
    assert "4 set aside" in result.stdout
    assert "set aside: 'bees'" in result.stdout
    assert run("verify", "--index", index).exit_code == 0
    assert run("verify", "--repair", "--index", index).exit_code == 0  # nothing left to do


def test_verify_encodes_a_sample_again_and_says_how_far_it_is_off(run: Run, index: Path) -> None:
    result = run("verify", "--sample", 3, "--index", index, "--json")
    sample = json.loads(result.stdout)["sample"]
    assert result.exit_code == 0
    assert (sample["passages"], sample["queries"]) == (3, 3)
    assert 0 <= sample["margin_drift_mean"] <= sample["margin_drift_max"] < 0.05
    assert sample["rank_agreement"] > 0.9
    assert "rank agreement (Kendall)" in run("verify", "--sample", 3, "--index", index).stdout


def test_rollback_and_gc_say_what_they_did(run: Run, index: Path) -> None:
    assert run("delete", "bees", "--index", index).exit_code == 0
    assert json.loads(run("rollback", "--index", index, "--json").stdout)["generation"] == "000001"
    assert json.loads(run("rollback", "--to", "2", "--index", index, "--json").stdout)["before"] == "000001"
    plan = json.loads(run("gc", "--dry-run", "--index", index, "--json").stdout)
    assert (plan["compacted"], plan["freed_bytes"], plan["dry_run"]) == (1, 0, True)
    said = run("gc", "--index", index).stdout
    assert "000001 removed: it holds 1 passages that were deleted" in said
    assert "generation 000003 is live" in said
    assert run("rollback", "--index", index).exit_code == 2


def test_fold_says_what_it_did_and_when_there_is_nothing_to_do(run: Run, index: Path, tmp_path: Path) -> None:
    assert "has 1 segments: nothing to fold" in run("fold", "--index", index).stdout
    (tmp_path / "more.jsonl").write_text('{"id": "more", "text": "one more bee"}\n')
    assert json.loads(run("add", tmp_path / "more.jsonl", "--index", index, "--json").stdout)["segments"] == 2
    report = json.loads(run("fold", "--index", index, "--json").stdout)
    assert (report["segments_before"], report["segments"]) == (2, 2)  # one of a tier is not many
    said = run("fold", "--all", "--index", index).stdout
    assert "holds 5 passages in 1 segments (were 2); 0 deleted or replaced ones left out" in said
    assert run("fold", "--index", tmp_path / "none").exit_code == 1


def test_stats_count_what_is_hidden_and_shared_files_once(run: Run, index: Path) -> None:
    before = json.loads(run("stats", "--index", index, "--json").stdout)
    assert (before["segments"], before["tombstones"], before["tombstone_payload_bytes"]) == (1, 0, 0)
    run("delete", "bees", "--index", index)
    after = json.loads(run("stats", "--index", index, "--json").stdout)
    assert (after["passages"], after["tombstones"]) == (3, 1)
    assert after["payload_bytes"] + after["tombstone_payload_bytes"] == before["payload_bytes"]
    assert before["file_bytes"] < after["index_bytes"] < before["index_bytes"] + 20_000
