"""Where services of shards are: a file that is read anew, a name that is looked up anew."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kalm_cache.errors import UsageError
from query_service.router.addresses import addresses_in_file, addresses_of_name


def test_a_file_has_a_url_a_line_and_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "shards.txt"
    file.write_text("# two\n\nhttp://10.0.0.5:8081\n  http://shard-1/  \nhttp://10.0.0.5:8081\n")
    look_up = addresses_in_file(file)
    assert asyncio.run(look_up()) == ["http://10.0.0.5:8081", "http://shard-1"]
    file.write_text("https://other:8\n")
    assert asyncio.run(look_up()) == ["https://other:8"]


@pytest.mark.parametrize("line", ["10.0.0.5:8081", "ftp://a", "http://", "http://a:0", "http://a:x", "http://a/search"])
def test_a_line_that_is_no_address_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "shards.txt"
    file.write_text(f"http://a\n{line}\n")
    with pytest.raises(UsageError, match=r"shards.txt:2: .* expected http://HOST:PORT"):
        addresses_in_file(file)


def test_a_file_that_is_not_there_or_names_nobody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        addresses_in_file(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("# nobody\n")
    with pytest.raises(UsageError, match="names no service"):
        addresses_in_file(tmp_path / "empty.txt")


def test_a_name_stands_for_all_its_addresses() -> None:
    found = asyncio.run(addresses_of_name("http://localhost:8081")())
    assert "http://127.0.0.1:8081" in found


def test_a_name_that_is_not_known_is_told_when_it_is_looked_up() -> None:
    with pytest.raises(UsageError, match="has no address"):
        asyncio.run(addresses_of_name("http://no-such-name.invalid:1")())
