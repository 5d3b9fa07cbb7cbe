"""Networks in the layout of the Hugging Face hub."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi, ModelHubMixin, RepoUrl

import fatnn_rs as fatnn
from fatnn_rs import zoo
from fatnn_rs.hub import HubNetwork
from training import save_digit


def test_hub_files_are_written_and_read_again(tmp_path: Path) -> None:
    network = HubNetwork(zoo.path("digits"))
    assert isinstance(network, ModelHubMixin)
    network.save_pretrained(tmp_path / "repository")
    names = {file.name for file in (tmp_path / "repository").iterdir()}
    assert names == {"README.md", "net.json", "net.safetensors"}
    page = (tmp_path / "repository" / "README.md").read_text()
    assert "library_name: fatnn-rs" in page
    assert str(network.card) in page
    again = HubNetwork.from_pretrained(tmp_path / "repository")
    x = np.random.default_rng(0).standard_normal((3, 1, 8, 8), np.float32)
    np.testing.assert_array_equal(again(x), network(x))
    assert again.card == network.card
    label = save_digit(tmp_path / "a.png")
    assert again.classifier().classify(tmp_path / "a.png")[0][0] == str(label)
    again.save_pretrained(tmp_path / "repository")  # onto itself
    HubNetwork.from_pretrained(str(tmp_path / "repository"))


def test_hub_network_without_a_card_or_a_file(tmp_path: Path) -> None:
    net = tmp_path / "net.safetensors"
    net.write_bytes(zoo.path("digits").read_bytes())
    network = HubNetwork(net)
    assert network.card is None
    with pytest.raises(fatnn.ConfigError, match="has no card"):
        network.classifier()
    HubNetwork(zoo.path("fashion-mnist")).save_pretrained(tmp_path / "repository")
    network.save_pretrained(tmp_path / "repository")  # nothing of the other network is left
    assert HubNetwork.from_pretrained(tmp_path / "repository").card is None
    page = tmp_path / "repository" / "README.md"
    assert "Fashion" not in page.read_text()
    page.write_text("my own words")
    network.save_pretrained(tmp_path / "repository")
    assert page.read_text() == "my own words"
    assert pickle.loads(pickle.dumps(network)).network.inputs == network.network.inputs
    (tmp_path / "empty").mkdir()
    with pytest.raises(fatnn.FormatError, match=r"expected net\.safetensors there"):
        HubNetwork.from_pretrained(tmp_path / "empty")
    with pytest.raises(fatnn.ConfigError, match="from_pretrained: colour is unknown"):
        HubNetwork.from_pretrained(tmp_path / "empty", colour=1)


@pytest.mark.parametrize("name", ["", "./missing", "missing", "me/missing", __file__])
def test_hub_names_that_nothing_has_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(fatnn.InputError, match=r"is no directory here, and net\.safetensors of"):
        HubNetwork.from_pretrained(name, cache_dir=tmp_path, local_files_only=True)


def test_hub_cache_without_a_card(tmp_path: Path) -> None:
    commit = "0" * 40
    repository = tmp_path / "models--me--mine"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    net = repository / "snapshots" / commit / "net.safetensors"
    net.write_bytes(zoo.path("digits").read_bytes())
    options = {"cache_dir": tmp_path, "local_files_only": True}
    with pytest.raises(fatnn.InputError, match="cannot be fetched"):  # it may have a card
        HubNetwork.from_pretrained("me/mine", **options)
    absent = repository / ".no_exist" / commit / "net.json"
    absent.parent.mkdir(parents=True)
    absent.touch()
    assert HubNetwork.from_pretrained("me/mine", **options).card is None
    zoo.card("digits").write(net.with_suffix(".json"))
    assert HubNetwork.from_pretrained("me/mine", **options).card == zoo.card("digits")


@pytest.mark.parametrize("name", ["digits", None])
def test_push_uploads_the_files_of_save_pretrained(
    name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the two requests to the hub are replaced: there is none to push to."""
    sent: dict[str, Any] = {}

    def create(api: HfApi, repo_id: str, **options: Any) -> RepoUrl:
        assert options["exist_ok"]
        return RepoUrl(f"{api.endpoint}/me/{repo_id}")

    def upload(api: HfApi, *, repo_id: str, folder_path: Path, **options: Any) -> str:
        files = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}
        sent.update(files=files, repo_id=repo_id, **options)
        return "the commit"

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    file = tmp_path / "net.safetensors"
    file.write_bytes(zoo.path("digits").read_bytes())
    network = HubNetwork(zoo.path(name) if name else file)
    assert network.push_to_hub("mine", commit_message="new") == "the commit"
    assert (sent["repo_id"], sent["commit_message"]) == ("me/mine", "new")
    names = {"README.md", "net.json", "net.safetensors"}
    assert sent["files"].keys() == (names if name else names - {"net.json"})
    # The card of an earlier network must not stay.
    assert sent["delete_patterns"] == (None if name else ["net.json"])
    assert sent["files"]["net.safetensors"] == file.read_bytes()
