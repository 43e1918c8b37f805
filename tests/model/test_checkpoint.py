import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kalm_cache.errors import CheckpointError
from kalm_cache.model.checkpoint import ALIASES, BUNDLED_TINY, SENSITIVITY_FILE, Checkpoint, open_checkpoint
from kalm_cache.model.prompts import load_prompt_tokenizer
from kalm_cache.model.runtime import load_encoder
from tests.checkpoints import edit_config, edit_tensors, make_checkpoint
from tests.hub import COMMIT, loopback_hub


@pytest.fixture
def folder(mini_folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(mini_folder, tmp_path / "model"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "sharded", max_shard_size="300KB")


def in_hub_cache(cache: Path, repo_id: str, folder: Path) -> None:
    """Lay a model out as the hub's client caches it: a ref that names a commit, a snapshot of that commit."""
    home = cache / f"models--{repo_id.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, home / "snapshots" / COMMIT)


def test_every_tensor_of_the_file_is_read(mini: Checkpoint, mini_folder: Path):
    saved = load_file(mini_folder / "model.safetensors")
    assert mini.files == dict.fromkeys(saved, "model.safetensors")
    assert all(torch.equal(mini.tensor(name), tensor) for name, tensor in saved.items())


def test_a_sharded_checkpoint_holds_the_same_tensors(mini: Checkpoint, sharded: Path):
    checkpoint = open_checkpoint(str(sharded))
    assert len(set(checkpoint.files.values())) > 3
    assert checkpoint.files.keys() == mini.files.keys()
    assert all(torch.equal(checkpoint.tensor(name), mini.tensor(name)) for name in mini.files)


def test_find_gives_the_first_name_that_is_there(mini: Checkpoint):
    assert mini.find("nothing", "model.decoder.norm.weight", "model.encoder.norm.weight") == "model.decoder.norm.weight"
    assert mini.find("nothing") is None


def test_the_digest_names_what_the_model_computes(mini: Checkpoint, folder: Path):
    copy = open_checkpoint(str(folder))
    assert copy.digest() == mini.digest()
    (folder / "README.md").write_text("not part of it")
    assert copy.digest() == mini.digest()
    edit_config(folder, lambda config: config["decoder"].update(sliding_window=15))
    assert copy.digest() != mini.digest()


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_the_digest_changes_with_one_byte(mini: Checkpoint, folder: Path, name: str):
    data = bytearray((folder / name).read_bytes())
    data[-2] ^= 1
    (folder / name).write_bytes(data)
    assert Checkpoint("copy", folder, mini.config, mini.files).digest() != mini.digest()


def test_checkpoints_that_differ_by_a_sensitivity_alone_have_digests_of_their_own(mini: Checkpoint, folder: Path):
    digests = [mini.digest()]
    for content in (b"one", b"another"):
        (folder / SENSITIVITY_FILE).write_bytes(content)
        digests.append(open_checkpoint(str(folder)).digest())
    assert len(set(digests)) == 3
    (folder / SENSITIVITY_FILE).unlink()
    assert open_checkpoint(str(folder)).digest() == mini.digest()


def test_aliases_name_the_published_models():
    assert ALIASES == {
        "nano": "KaLM-Embedding/KaLM-Reranker-V1-Nano",
        "small": "KaLM-Embedding/KaLM-Reranker-V1-Small",
        "large": "KaLM-Embedding/KaLM-Reranker-V1-Large",
        "nano-r2": "KaLM-Embedding/KaLM-Reranker-V1-Nano-R2",
        "small-r2": "KaLM-Embedding/KaLM-Reranker-V1-Small-R2",
        "large-r2": "KaLM-Embedding/KaLM-Reranker-V1-Large-R2",
    }


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_an_alias_opens_its_model_from_the_hubs_cache(alias: str, mini_folder: Path, tmp_path: Path):
    in_hub_cache(tmp_path, ALIASES[alias], mini_folder)
    checkpoint = open_checkpoint(alias, cache_dir=tmp_path, local_files_only=True)
    assert checkpoint.name == alias
    assert checkpoint.folder.name == COMMIT


def test_a_hub_id_and_a_revision_open_from_the_hubs_cache(mini_folder: Path, tmp_path: Path):
    in_hub_cache(tmp_path, "owner/name", mini_folder)
    for revision in (None, "main", COMMIT):
        checkpoint = open_checkpoint("owner/name", cache_dir=tmp_path, local_files_only=True, revision=revision)
        assert checkpoint.folder.name == COMMIT


def test_a_hub_id_is_downloaded_once_with_the_files_needed_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (folder / "pytorch_model.bin").write_bytes(b"not needed")
    (folder / "README.md").write_text("not needed")
    (folder / SENSITIVITY_FILE).write_bytes(b"needed to index")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    cache = tmp_path / "cache"
    with loopback_hub({"owner/name": folder}) as (endpoint, requests):
        downloaded = open_checkpoint("owner/name", cache_dir=cache, endpoint=endpoint)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint("owner/missing", cache_dir=cache, endpoint=endpoint)
    needed = ["config.json", "model.safetensors", SENSITIVITY_FILE, "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in downloaded.folder.iterdir()) == needed
    assert str(caught.value).startswith("owner/missing: not a local folder, and the download")
    assert "\n" not in str(caught.value)
    assert any(path.endswith("/model.safetensors") for path in requests)
    again = open_checkpoint("owner/name", cache_dir=cache, local_files_only=True)
    assert again.digest() == downloaded.digest() == open_checkpoint(str(folder)).digest()


def test_a_model_that_is_not_there_is_one_clear_line(tmp_path: Path):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("owner/name", cache_dir=tmp_path, local_files_only=True)
    message = str(caught.value)
    assert message.startswith("owner/name: not a local folder, and the download from Hugging Face failed: ")
    assert "\n" not in message


@pytest.mark.parametrize("name", ["no/such/folder", "nanno", "", "two words", "../nano"])
def test_a_name_that_is_no_hub_id_is_told_the_three_kinds(name: str):
    with pytest.raises(CheckpointError):
        open_checkpoint(name, local_files_only=True)


def test_a_folder_without_config_is_refused(folder: Path):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"model_type": "llama"}', '{"model_type": "t5gemma2"}'])
def test_a_config_of_something_else_is_refused(folder: Path, content: str):
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(str(folder))


def test_a_folder_without_weights_is_refused(folder: Path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors and no model\.safetensors\.index\.json"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("size", [0, 5, 100, 200_000])
def test_a_truncated_file_is_refused(folder: Path, size: int):
    os.truncate(folder / "model.safetensors", size)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        open_checkpoint(str(folder))


def test_a_pointer_in_place_of_the_weights_is_refused(folder: Path):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        open_checkpoint(str(folder))


def test_missing_shards_are_named(sharded: Path):
    segments = sorted(sharded.glob("model-*.safetensors"))
    for segment in segments[1:3]:
        segment.unlink()
    with pytest.raises(CheckpointError, match=f"files that are not there: {segments[1].name}, {segments[2].name}$"):
        open_checkpoint(str(sharded))


def test_a_truncated_shard_is_refused_when_it_is_read(sharded: Path):
    checkpoint = open_checkpoint(str(sharded))
    name, segment = next(iter(checkpoint.files.items()))
    os.truncate(sharded / segment, 1000)
    with pytest.raises(CheckpointError, match=f"{segment}: not a readable safetensors file"):
        checkpoint.tensor(name)


def test_an_index_that_names_a_tensor_its_shard_does_not_hold_is_refused(sharded: Path):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    segments = sorted(set(content["weight_map"].values()))
    moved = next(name for name, segment in content["weight_map"].items() if segment == segments[0])
    content["weight_map"][moved] = segments[1]
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=moved):
        open_checkpoint(str(sharded)).tensor(moved)


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": 3}', "{"])
def test_an_index_without_a_weight_map_is_refused(sharded: Path, content: str):
    (sharded / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        open_checkpoint(str(sharded))


@pytest.mark.skipif(not (BUNDLED_TINY / "config.json").is_file(), reason="the bundled model is not in this checkout")
def test_tiny_is_the_bundled_model():
    assert open_checkpoint("tiny").folder == BUNDLED_TINY


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a\nb", 3])
def test_an_index_that_leads_out_of_its_folder_is_refused(sharded: Path, name: object):
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"norm.weight": name}}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json: .*weight_map"):
        open_checkpoint(str(sharded))


def test_a_config_of_brackets_is_refused(folder: Path):
    (folder / "config.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON: it is nested more than 64 deep"):
        open_checkpoint(str(folder))


EMBEDDINGS = ("model.encoder.text_model.embed_tokens.weight", "model.encoder.embed_tokens.weight")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.T.contiguous(), "weights do not fit config.json: .*embed_tokens"),
        (lambda table: table[:-1].contiguous(), "weights do not fit config.json: .*embed_tokens"),
        (lambda table: table.long(), "holds torch.int64, expected floating-point numbers"),
    ],
)
def test_embeddings_of_another_shape_or_dtype_are_refused(folder: Path, change, said: str):
    edit_tensors(folder, lambda tensors: {n: change(t) if n in EMBEDDINGS else t for n, t in tensors.items()})
    with pytest.raises(CheckpointError, match=said):
        load_encoder(open_checkpoint(str(folder)), torch.device("cpu"), torch.float32)


def test_a_tokenizer_that_gives_ids_outside_of_the_table_is_refused(folder: Path):
    rows = open_checkpoint(str(folder)).config.decoder.vocab_size
    load_prompt_tokenizer(folder, rows)
    with pytest.raises(CheckpointError, match=rf"gives ids up to {rows - 1}, the embedding table has {rows - 1} rows"):
        load_prompt_tokenizer(folder, rows - 1)
