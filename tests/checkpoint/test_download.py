import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.download import embedded_directory, resolve
from actors.checkpoint.layout import dense_tensor_names, expert_tensor_names
from actors.checkpoint.reader import CheckpointReader
from actors.checkpoint.weights import validate_dense, validate_experts
from actors.errors import DownloadError
from actors.protocol.settings import ModelSource
from tests.checkpoint.hub_server import COMMIT, GATED, PUBLIC, HubServer, hub
from tests.support import small_checkpoints

SPEC = small_checkpoints.Spec(name="hub", seed=11, num_shards=12)

# The hub's client reads its environment when it is imported, so each download runs in a process of its own.
DOWNLOAD = """
import json, sys
from actors.checkpoint.download import resolve
from actors.checkpoint.layout import dense_tensor_names, expert_tensor_names
from actors.errors import CheckpointError
from actors.protocol.settings import ModelSource

source, role = json.loads(sys.argv[1])
roles = {
    "none": None,
    "dense": dense_tensor_names,
    "expert": lambda config: expert_tensor_names(config, (6, 7)),
}
try:
    print(json.dumps({"path": str(resolve(ModelSource(**source), roles[role]))}))
except CheckpointError as error:
    print(json.dumps({"error": type(error).__name__, "text": str(error)}))
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = small_checkpoints.write(SPEC, tmp_path_factory.mktemp("repository"))
    (directory / "README.md").write_text("not needed")
    return directory


@pytest.fixture
def server(repository: Path) -> Iterator[HubServer]:
    with hub(repository) as running:
        yield running


def download(
    url: str,
    cache: Path,
    model: str,
    role: str = "none",
    revision: str | None = None,
    token: str | None = None,
) -> dict[str, str]:
    source = {"model": model, "revision": revision, "token": token, "cache_dir": str(cache)}
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING")) and not name.lower().endswith("_proxy")
    }
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(cache / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DOWNLOAD, json.dumps([source, role])],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


def shards(repository: Path, tensors: frozenset[str]) -> set[str]:
    weight_map = json.loads((repository / "model.safetensors.index.json").read_text())["weight_map"]
    return {weight_map[tensor] for tensor in tensors}


def test_an_ingress_fetches_no_weights(server: HubServer, tmp_path: Path) -> None:
    path = Path(download(server.url, tmp_path, PUBLIC)["path"])
    assert (path / "tokenizer.json").exists()
    assert ModelConfig.from_directory(path).num_layers == SPEC.num_layers
    assert not [name for name in server.fetched if name.endswith(".safetensors")]
    assert "README.md" not in server.fetched


def test_each_role_fetches_only_the_shards_with_its_tensors(
    server: HubServer, repository: Path, tmp_path: Path
) -> None:
    path = Path(download(server.url, tmp_path, PUBLIC, "expert")["path"])
    config = ModelConfig.from_directory(path)
    expert_shards = shards(repository, expert_tensor_names(config, (6, 7)))
    assert {name for name in server.fetched if name.endswith(".safetensors")} == expert_shards
    assert len(expert_shards) < SPEC.num_shards
    validate_experts(CheckpointReader(path), config, (6, 7))

    server.fetched.clear()
    assert Path(download(server.url, tmp_path, PUBLIC, "dense")["path"]) == path
    dense_shards = shards(repository, dense_tensor_names(config))
    assert set(server.fetched) == dense_shards - expert_shards
    assert server.fetched
    validate_dense(CheckpointReader(path), config)


def test_a_single_file_is_fetched_whole(tmp_path: Path) -> None:
    directory = small_checkpoints.write(small_checkpoints.CATALOGUE[0], tmp_path / "repository")
    with hub(directory) as server:
        path = Path(download(server.url, tmp_path / "cache", PUBLIC, "dense")["path"])
    assert server.fetched.count("model.safetensors") == 1
    validate_dense(CheckpointReader(path), ModelConfig.from_directory(path))


def test_revision_and_token_reach_the_hub_and_the_cache_is_the_one_named(
    server: HubServer, tmp_path: Path
) -> None:
    answer = download(server.url, tmp_path / "mine", PUBLIC, revision="v1", token="hf_secret")
    assert Path(answer["path"]).is_relative_to(tmp_path / "mine")
    assert Path(answer["path"]).name == COMMIT
    assert server.tokens == {"Bearer hf_secret"}


def test_what_is_cached_is_found_without_the_hub(repository: Path, tmp_path: Path) -> None:
    with hub(repository) as server:
        first = download(server.url, tmp_path, PUBLIC, "expert")
    assert download(server.url, tmp_path, PUBLIC, "expert") == first


@pytest.mark.parametrize(
    ("model", "revision", "text"),
    [
        pytest.param("someone/nothing", None, "no such public repository", id="no repository"),
        pytest.param(GATED, None, "ask for access", id="gated"),
        pytest.param(PUBLIC, "v9", "it has no revision 'v9'", id="no revision"),
        pytest.param("two words", None, "neither a directory nor a hub name", id="no name"),
    ],
)
def test_a_refusal_says_what_to_do(
    server: HubServer, tmp_path: Path, model: str, revision: str | None, text: str
) -> None:
    answer = download(server.url, tmp_path, model, "dense", revision)
    assert answer["error"] == "DownloadError"
    assert answer["text"].startswith(f"cannot get model {model!r}: ")
    assert text in answer["text"]


def test_no_network_is_said_so(tmp_path: Path) -> None:
    with hub(tmp_path) as server:
        url = server.url
    answer = download(url, tmp_path, PUBLIC)
    assert answer["error"] == "DownloadError"
    assert "the hub cannot be reached" in answer["text"]
    assert "HF_ENDPOINT" in answer["text"]


def test_a_directory_is_used_as_it_is(tmp_path: Path) -> None:
    assert resolve(ModelSource(model=str(tmp_path)), dense_tensor_names) == tmp_path


@pytest.mark.parametrize("model", [None, "tiny"])
def test_the_default_is_the_embedded_model(model: str | None) -> None:
    assert resolve(ModelSource(model=model), dense_tensor_names) == embedded_directory()


@pytest.mark.parametrize("model", ["/no/such/place", "./nowhere", "~/nowhere", "a/b/c"])
def test_a_path_that_is_no_directory_is_not_taken_for_a_hub_name(model: str) -> None:
    with pytest.raises(DownloadError, match="it is no existing directory"):
        resolve(ModelSource(model=model))


def test_a_file_is_not_taken_for_a_model(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(DownloadError, match="it is no existing directory"):
        resolve(ModelSource(model=str(file)))
