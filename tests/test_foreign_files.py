"""Files that somebody else may have written: what is refused before it is used, and what the refusal says."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from kalm_cache.foreign_files import (
    STRICT,
    Count,
    GenerationName,
    RelativePath,
    checked_fields,
    foreign_link,
    is_generation_name,
    parse_json,
    read_bounded,
    relative_path,
)


@dataclass(frozen=True, slots=True)
class Inner:
    count: Count
    __pydantic_config__ = STRICT


@dataclass(frozen=True, slots=True)
class Outer:
    name: GenerationName
    files: dict[RelativePath, Inner]
    rate: float | None = None
    __pydantic_config__ = STRICT


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 200_000, "nested more than 64 deep"),
        (b"[" * 65 + b"]" * 65, "nested more than 64 deep"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested more than 64 deep"),
        (b"9" * 1_000_000, "a number of 1000000 digits"),
        (b"9223372036854775808", "a number of 19 digits"),
        (b"NaN", "NaN is in it"),
        (b"-Infinity", "-Infinity is in it"),
        (b"1e999", "1e999 is in it"),
        (b'"\xff"', "utf-8"),
        (b"{", "Expecting"),
    ],
)
def test_json_that_nothing_here_writes_is_refused_in_one_line(content: bytes, said: str):
    with pytest.raises(ValueError, match=said) as refused:
        parse_json(content)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200


def test_json_at_the_bounds_is_read():
    assert parse_json(b"[" * 64 + b"]" * 64)
    assert parse_json(b"[9223372036854775807, -9223372036854775808, 1.5]") == [2**63 - 1, -(2**63), 1.5]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/etc/passwd", "is absolute"),
        ("../other", "does not stay inside"),
        ("a/../../b", "does not stay inside"),
        ("a//b", "does not stay inside"),
        ("./a", "does not stay inside"),
        ("", "does not stay inside"),
        ("a\nb", "not printable"),
        ("a\0b", "not printable"),
        ("\ud800", "not printable"),
        ("x" * 256, "too long"),
        ("/".join("x" * 600), "too long"),
    ],
)
def test_a_name_that_leaves_its_folder_is_refused_and_shown_on_one_line(name: str, said: str):
    with pytest.raises(ValueError, match=said) as refused:
        relative_path(name)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_name_of_several_parts_is_itself():
    assert relative_path("shards/00000/first_stage/é.npy") == "shards/00000/first_stage/é.npy"


@pytest.mark.parametrize(
    ("name", "valid"), [("000001", True), ("²", False), ("٣", False), ("", False), ("1" * 19, False), ("-1", False)]
)
def test_names_of_generations_are_ascii_digits(name: str, valid: bool):
    assert is_generation_name(name) is valid


VALID = {"name": "000001", "files": {"a/b": {"count": 3}}, "rate": 1.5}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "../x"}, "name"),
        ({"name": 1}, "name"),
        ({"files": {"../x": {"count": 3}}}, r"files\.'\.\./x'\..*does not stay inside"),
        ({"files": {"a": {"count": -1}}}, r"files\.a\.count"),
        ({"files": {"a": {"count": True}}}, r"files\.a\.count"),
        ({"files": {"a": {"count": 3.0}}}, r"files\.a\.count"),
        ({"files": {"a": {"count": "3"}}}, r"files\.a\.count"),
        ({"files": {"a": {}}}, r"files\.a\.count"),
        ({"files": []}, "files"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_field_that_is_not_what_it_should_be_is_named(change: dict[str, object], field: str):
    with pytest.raises(ValueError, match=field):
        checked_fields(Outer, VALID | change)


def test_fields_become_nested_dataclasses():
    assert checked_fields(Outer, VALID) == Outer("000001", {"a/b": Inner(3)}, 1.5)


def test_a_pipe_and_a_file_of_16_gb_are_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no regular file"):
        read_bounded(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(16 << 30)
    with pytest.raises(ValueError, match="it has 17179869184 bytes"):
        read_bounded(tmp_path / "huge")


def test_only_links_that_lead_out_of_a_folder_are_foreign(tmp_path: Path):
    (tmp_path / "000001" / "inner").mkdir(parents=True)
    (tmp_path / "000001" / "file").touch()
    (tmp_path / "000001" / "inner" / "link").symlink_to("../file")
    assert foreign_link(tmp_path / "000001") is None
    (tmp_path / "000001" / "inner" / "other").symlink_to("../../000002")
    assert foreign_link(tmp_path / "000001") == tmp_path / "000001" / "inner" / "other"
    (tmp_path / "000003").symlink_to("/etc")
    assert foreign_link(tmp_path / "000003") == tmp_path / "000003"
