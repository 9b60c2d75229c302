"""A real run of a model of the hub, which is a stand-in: driver, engines and ranks have the commit that config.toml
names, and not what the branch has become."""

import tomllib
from pathlib import Path

from cluster.run.record import read_steps
from evidence.shards import read_table, shard_name
from tests.runs import ONE_ENGINE, small_run
from tests.servers import Hub, answering

OLD, NEW = "a1" * 20, "b2" * 20


def test_every_process_has_the_commit_of_the_start(tmp_path: Path, small_model: Path) -> None:
    files = {path.name: path.read_bytes() for path in small_model.iterdir() if path.is_file()}
    later = files | {"model.safetensors": b"what no process could load"}
    hub = Hub("org/model", {OLD: files, NEW: later}, NEW, {"v1": OLD})
    with answering(hub.answer) as address:
        environment = {"HF_ENDPOINT": f"http://{address}", "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        settings = ("run.steps=1", "probe.gap=false", "model.path=org/model@v1", *ONE_ENGINE)
        done = small_run(tmp_path / "run", *settings, **environment)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert sum(path.endswith(f"/resolve/{OLD}/model.safetensors") for path in hub.asked) >= 1
    with (tmp_path / "run" / "config.toml").open("rb") as file:
        assert tomllib.load(file)["model"]["path"] == f"org/model@v1@{OLD}"
    assert f"run {tmp_path}/run: org/model@v1@{OLD} on cpu" in done.stdout
    (step,) = read_steps(tmp_path / "run" / "metrics.jsonl").values()
    shard = read_table(str(tmp_path / "run" / "shards" / shard_name(0)))
    assert step.rows and shard.schema.metadata[b"model_id"] == f"org/model@v1@{OLD}".encode()
    exported = {path.name for path in (tmp_path / "run" / "export").iterdir()}
    assert exported >= {"config.json", "tokenizer.json", "model.safetensors", "README.md"}
