"""Damages files of a finished index, one at a time, and says what verify and what queries make of it.

Runs in children of a worker, since a damaged page can end a process. Every damage must be named by verify, with the
passage where it is one's, or change nothing; and no query may give another score or text without saying so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from indexer.integrity.verify import verify_generation, verify_index
from kalm_cache import PassageIndex
from kalm_cache.errors import KalmCacheError, UnknownIdError
from kalm_cache.generations.generation import open_current, open_generation
from kalm_cache.storage.passage_store import PassageStore
from tests.torture.content import DEPTH, QUERIES, RERANKED

SECTOR_BYTES = 512
SEARCHED = 1  # of the queries, to the reranker's end
Verdict = Literal["same", "error", "partial", "changed"]


@dataclass(frozen=True, slots=True)
class IndexDamage:
    """What is done to `file`, a path below the index.

    `flip` bit `bit` of byte `at`, `cut` the file there, `zero` a sector from there, or the file is `gone`.
    """

    kind: Literal["flip", "cut", "zero", "gone"]
    file: str
    at: int = 0
    bit: int = 0

    def apply(self, index: Path) -> Callable[[], None]:
        """Do it; returns what undoes it."""
        path = index / self.file
        if self.kind == "gone":
            aside = path.with_name(path.name + ".aside")
            path.rename(index.parent / aside.name)
            return lambda: (index.parent / aside.name).rename(path) and None
        before = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(self.at)
            if self.kind == "flip":
                file.write(bytes([before[self.at] ^ 1 << self.bit]))
            elif self.kind == "zero":
                file.write(bytes(len(before[self.at : self.at + SECTOR_BYTES])))
            else:
                file.truncate(self.at)
        return lambda: _restore(path, before, self.at)


def _restore(path: Path, before: bytes, at: int) -> None:
    with path.open("r+b") as file:  # in place: it may have other names
        file.seek(at)
        file.write(before[at:])


def expected(index: Path) -> dict[str, Any]:
    """What the whole index answers, and where in its files each passage's record and text lie."""
    with PassageIndex.open(index, device="cpu") as opened:
        doc_ids = sorted(key.decode() for key in opened.store.keys())  # noqa: SIM118 (not a dict)
    return {"answers": _ask(index, doc_ids), "doc_ids": doc_ids, "places": _places(index)}


def check(index: Path, damages: list[dict[str, Any]], valid: dict[str, Any], results: str) -> None:
    """Apply each damage, look, and undo it; a line of `results` for each, so that it is known which one ended this."""
    with Path(results).open("a") as lines:
        for fields in damages:
            damage = IndexDamage(**fields)
            undo = damage.apply(index)
            try:
                found = _look(index, damage, valid)
            finally:
                undo()
            lines.write(json.dumps(found) + "\n")
            lines.flush()


def _look(index: Path, damage: IndexDamage, valid: dict[str, Any]) -> dict[str, Any]:
    named, problems = _verified(index, damage, valid["places"])
    answers = _ask(index, valid["doc_ids"])
    verdicts = {name: _verdict(answers[name], valid["answers"][name]) for name in answers}
    changed = [name for name, verdict in verdicts.items() if verdict == "changed"]
    problems += [f"{name} changed silently" for name in changed]
    problems += [f"an unclean error: {one}" for one in sorted(_unclean(answers))]
    if not named and any(verdict != "same" for verdict in verdicts.values()):
        problems.append(f"verify does not name it, and it is not harmless: {verdicts}")
    query = "same" if set(verdicts.values()) == {"same"} else "changed" if changed else "said"
    return {"damage": asdict(damage), "named": named, "query": query, "problems": problems}


def _verified(index: Path, damage: IndexDamage, places: dict[str, list[list[Any]]]) -> tuple[bool, list[str]]:
    """Whether verify finds damage, and what is wrong with how it names it."""
    try:
        found = _verify(index, damage)
    except KalmCacheError as exc:
        return True, [] if Path(damage.file).name in str(exc) else [
            f"verify ends with an error that names another file: {exc}"
        ]
    except Exception as exc:
        return True, [f"verify ends with {type(exc).__name__}: {exc}"]
    if not found:
        return False, []
    problems = []
    if not any(damage.file.endswith(file) or (file and file in damage.file) for file, _ in found):
        problems.append(f"verify names other files: {sorted({file for file, _ in found})}")
    for doc_id in _hit(damage, places):
        if (doc_id not in {one for _, one in found}) and damage.kind not in ("cut", "gone"):
            problems.append(f"verify does not name passage {doc_id}: {found[:3]}")
    return True, problems


def _verify(index: Path, damage: IndexDamage) -> list[tuple[str, str | None]]:
    """Damage of the live generation; where there is none, that of the generation in whose folder the file is."""
    found = [(one.file, one.doc_id) for one in verify_index(index).damaged]
    parts = Path(damage.file).parts
    if not found and parts[0] == "generations":
        generation = open_generation(index / "generations" / parts[1])
        found = [(one.file, one.doc_id) for one in verify_generation(generation).damaged]
    return found


def _hit(damage: IndexDamage, places: dict[str, list[list[Any]]]) -> Iterator[str]:
    """The passages whose records or texts a damage touches."""
    end = damage.at + (SECTOR_BYTES if damage.kind == "zero" else 1)
    for start, stop, doc_id in places.get(damage.file, ()):
        if start < end and damage.at < stop:
            yield doc_id


def _places(index: Path) -> dict[str, list[list[Any]]]:
    """File -> start, end and doc id of every payload in it."""
    places: dict[str, list[list[Any]]] = {}
    for part in open_current(index).parts():
        with PassageStore(part.segment) as store, store.reading() as readers:
            for name, reader in zip(("states.lmdb", "passages.lmdb"), readers, strict=True):
                path = part.segment / name
                content = path.read_bytes()
                places[str(path.relative_to(index))] = [
                    [at, at + len(entry.payload), entry.key.decode()]
                    for block in reader.blocks()
                    for entry in block
                    if entry.payload and (at := content.find(bytes(entry.payload))) >= 0
                ]
    return places


def _ask(index: Path, doc_ids: list[str]) -> dict[str, Any]:
    """Everything that queries can ask for; an error is its own answer: `["error", type, message, on purpose]`."""
    opened = _tried(lambda: PassageIndex.open(index, device="cpu"))
    if isinstance(opened, list):
        return dict.fromkeys(("searches", "first stage", "ids", "states", "texts"), opened)
    with opened:
        return {
            "searches": [_tried(lambda q=query: _search(opened, q)) for query in QUERIES[:SEARCHED]],
            "first stage": [
                [_tried(lambda q=query, m=mode: _candidates(opened, q, m)) for mode in opened.first_stage.modes]
                for query in QUERIES
            ],
            "ids": _tried(lambda: [key.decode() for key in opened.store.keys()]),  # noqa: SIM118 (not a dict)
            "states": {one: _tried(lambda i=one: _states(opened, i)) for one in doc_ids},
            "texts": {one: _tried(lambda i=one: opened.store.texts([i])) for one in doc_ids},
        }


def _search(opened: PassageIndex, query: str) -> dict[str, Any]:
    answer = opened.search(query, k=RERANKED)
    results = {one.doc_id: [one.margin, one.text] for one in answer.results}
    return {"results": results, "damaged": answer.damaged}


def _is_partial(found: dict[str, Any], valid: dict[str, Any]) -> bool:
    """Whether an answer without some passages, or their texts, names them, and the others are what they were."""
    for doc_id, (margin, text) in valid["results"].items():
        there = found["results"].get(doc_id)
        if there is None:
            continue
        # computed with fewer beside it, a margin may differ in its last bits
        if not math.isclose(there[0], margin, rel_tol=1e-5, abs_tol=1e-5) or (
            there[1] != text and not (there[1] is None and doc_id in found["damaged"])
        ):
            return False
    missing = valid["results"].keys() - found["results"].keys()
    return found["results"].keys() <= valid["results"].keys() and len(missing) <= len(found["damaged"])


def _candidates(opened: PassageIndex, query: str, mode: Any) -> list[Any]:
    found = opened.first_stage.search(query, DEPTH, mode)
    return [found.ordinals.tolist(), [float(score).hex() for score in found.scores]]


def _states(opened: PassageIndex, doc_id: str) -> list[Any]:
    (passage,) = opened.pooled([doc_id])
    return [passage.tokens, passage.truncated, passage.states.numpy().tobytes().hex()]


def _tried(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception as exc:
        clean = isinstance(exc, KalmCacheError) and not isinstance(exc, UnknownIdError)
        return ["error", type(exc).__name__, str(exc), clean]


def _is_error(answer: Any) -> bool:
    return isinstance(answer, list) and len(answer) == 4 and answer[0] == "error"


def _unclean(answer: Any) -> set[str]:
    if _is_error(answer):
        return set() if answer[3] else {f"{answer[1]}: {answer[2]}"}
    parts = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, list) else ()
    return set().union(*map(_unclean, parts))


def _verdict(found: Any, valid: Any) -> Verdict:
    """`same`, an `error`, `partial`: every part is the same or an error; else it `changed`."""
    if found == valid:
        return "same"
    if _is_error(found):
        return "error"
    if isinstance(valid, dict) and "damaged" in valid:
        return "partial" if found["damaged"] and _is_partial(found, valid) else "changed"
    if isinstance(found, dict) and isinstance(valid, dict):
        parts = [_verdict(found.get(name, ["error"] * 4), valid[name]) for name in valid]
        return "changed" if "changed" in parts or found.keys() - valid.keys() else "partial"
    if isinstance(found, list) and isinstance(valid, list) and len(found) == len(valid):
        parts = [_verdict(one, other) for one, other in zip(found, valid, strict=True)]
        return "changed" if "changed" in parts else "partial"
    return "changed"
