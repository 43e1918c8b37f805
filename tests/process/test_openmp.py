"""A model and an index that were loaded before a fork compute in its children."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from kalm_cache.reranker import KaLMReranker
from tests.indexes import TEXTS, build, settings_for

DOCUMENTS = ["The capital of China is Beijing.", "Bees carry pollen."] * 8
FORKS = f"""
import ctypes, multiprocessing, os, sys
import torch
from kalm_cache import KaLMReranker, PassageIndex

torch.set_num_threads(2)
model, folder, computes_before = sys.argv[1], sys.argv[2], sys.argv[3] == "yes"
reranker = KaLMReranker(model, device="cpu", dtype="float32")
index = PassageIndex.open(folder, device="cpu", dtype="float32")

def answers(_=None):
    ranked = [one["corpus_id"] for one in reranker.rank("the capital", {DOCUMENTS})]
    return ranked, [one.doc_id for one in index.search("gravity").results]

before = answers() if computes_before else None
with multiprocessing.get_context("fork").Pool(2) as pool:
    of_children = pool.map(answers, range(2))
python = ctypes.PyDLL(None)
child = python.fork()  # as a server written in C forks: Python hears of it in the child alone
if child == 0:
    python.PyOS_AfterFork_Child()
    os._exit(0 if answers() == of_children[0] else 1)
assert os.waitpid(child, 0)[1] == 0
assert of_children == [answers()] * 2 and before in (None, answers())
"""


@pytest.fixture(scope="module")
def index(mini_folder: Path, embedder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forked") / "index"
    build(folder, settings_for(mini_folder, embedder_folder), TEXTS)
    return folder


@pytest.mark.parametrize("computes_before", ["yes", "no"])
def test_children_that_were_forked_after_loading_answer_as_their_parent_does(
    mini_folder: Path, index: Path, computes_before: str
) -> None:
    command = [sys.executable, "-c", FORKS, str(mini_folder), str(index), computes_before]
    subprocess.run(command, check=True, timeout=120)


def test_a_reranker_that_is_pickled_for_another_process_ranks_as_before(mini_reranker: KaLMReranker) -> None:
    copy = pickle.loads(pickle.dumps(mini_reranker))
    assert copy.rank("the capital", DOCUMENTS) == mini_reranker.rank("the capital", DOCUMENTS)


def test_an_open_index_says_that_it_is_opened_in_the_other_process(index: Path) -> None:
    from kalm_cache import PassageIndex

    with PassageIndex.open(index) as passages, pytest.raises(TypeError, match="open it there"):
        pickle.dumps(passages)
