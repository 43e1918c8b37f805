"""`kalm-cache config show --sources`."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Run


def test_sources_say_where_each_value_came_from_and_change_no_value(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('codec = "int8"\n', "utf-8")
    lines = run("config", "show", "--sources", "--config", file).stdout.splitlines()
    comment = dict(zip(lines[1::2], lines[::2], strict=True))
    assert comment['codec = "int8"'].endswith(f"({file})")
    assert comment['device = "cpu"'].endswith("(KALM_CACHE_DEVICE)")
    assert comment["port = 8080"].endswith("(default)")
    plain = run("config", "show", "--config", file).stdout.splitlines()
    assert plain[1::2] == lines[1::2]
