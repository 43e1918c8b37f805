"""URLs of remote indexes, and what may be shown of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kalm_cache.errors import UsageError
from kalm_cache.object_store.location import is_remote, parse_location, redacted
from kalm_cache.object_store.store import one_line_of


def test_a_folder_is_no_url_and_every_scheme_is() -> None:
    assert [is_remote(text) for text in ("my-index", "/data/index", "./s3:/x", "C:/x")] == [False] * 4
    urls = ["s3://bucket/path", "gs://bucket", "az://container/a/b", "file:///data/index", "memory://tests"]
    assert [is_remote(url) and str(parse_location(url)) for url in urls] == urls


def test_a_slash_at_the_end_makes_no_other_index() -> None:
    assert parse_location("s3://bucket/path/").key == parse_location("s3://bucket/path").key
    assert parse_location("s3://bucket/path").key != parse_location("s3://bucket/other").key


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://host/index", "the scheme is none of s3, gs, az, file, memory"),
        ("s3://AKIA:secret@bucket/path", "credentials and options stand in the environment"),
        ("s3://bucket/path?X-Amz-Signature=secret", "never in the URL"),
        ("az://container/path#secret", "never in the URL"),
        ("file://data/index", "give a whole path: file:///path/of/it"),
        ("file:///", "give a whole path"),
        ("s3:///path", "names no bucket; s3://BUCKET/PATH"),
    ],
)
def test_a_url_that_cannot_be_one_is_refused_without_its_secrets(url: str, problem: str) -> None:
    with pytest.raises(UsageError) as failure:
        parse_location(url)
    assert problem in str(failure.value)
    assert "AKIA" not in str(failure.value)
    assert "=secret" not in str(failure.value) and ":secret" not in str(failure.value)


def test_what_urls_hide_is_not_shown() -> None:
    said = "GET https://me:pw@host/x/y?sv=1&sig=abc%2B failed; see http://host/z"
    assert redacted(said) == "GET https://…host/x/y… failed; see http://host/z"


def test_an_error_of_a_store_is_one_line_with_the_code_of_its_answer() -> None:
    said = (
        "Generic S3 error: Error performing PUT https://host/b/CURRENT?sig=abc in 1s - Server returned non-2xx status "
        'code: 403 Forbidden: <?xml version="1.0"?>\n<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>AKIA'
    )
    assert one_line_of(ValueError(said)) == (
        "Generic S3 error: Error performing PUT https://host/b/CURRENT… in 1s - Server returned non-2xx status code: "
        "403 Forbidden (SignatureDoesNotMatch)"
    )


def test_without_obstore_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['obstore'] = None; sys.argv = ['kalm-cache', 'stats', '--index', 's3://bucket/path']\n"
        "from kalm_cache.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: obstore is not installed; run: pip install 'kalm-cache[cloud]'\n"
