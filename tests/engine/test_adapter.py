"""A real engine with an adapter, against plain float32 forwards."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from evidence.records import Ids, RolloutRequest
from learner.adapter import adapted_names, adapter_files
from tests.process.test_adapter import CONFIG, adapted, plain, trained
from tests.reference import logprobs_of

PROMPT = np.arange(100, 170, dtype=np.int32)  # more than two blocks of a prefix cache
RESPONSE = np.arange(40, 52, dtype=np.int32)


async def drive(model: str, folders: list[str], device: str = "cpu", **engine_settings: Any) -> dict[str, Any]:
    from rollout.config import AdapterConfig, EngineConfig, SamplingConfig
    from rollout.engine import Engine

    adapter = AdapterConfig(CONFIG.lora_rank, adapted_names(model, CONFIG))
    config = EngineConfig(**{"dtype": "float32", "window": 160, "max_num_seqs": 2, **engine_settings})
    engine = Engine(model, config, device, adapter=adapter)

    async def score(base: bool) -> list[float]:
        rows = await engine.score([PROMPT] * 4, [RESPONSE[:4], RESPONSE, RESPONSE[:9], RESPONSE[:1]], base)
        return rows[1].tolist()

    request, under_way = RolloutRequest("r", "p", "g", False, "system", PROMPT, PROMPT), list[asyncio.Task[Any]]()

    async def draw() -> None:
        """More than the engine runs at a time, so that most wait in its queue; a moment for them to get there."""
        under_way.extend(
            asyncio.create_task(engine.sample([request], SamplingConfig(1.0, 8), len(under_way) + seed))
            for seed in range(6)
        )
        await asyncio.sleep(0.05)

    found: dict[str, Any] = {"fresh": await score(base=False), "state": []}
    for version, folder in enumerate(folders, 3):
        if version > 3:
            await draw()
            asyncio.get_running_loop().call_later(0.05, lambda: asyncio.ensure_future(draw()))
        await engine.load_adapter({path.name: path.read_bytes() for path in Path(folder).iterdir()}, version)
        found["state"].append(await engine.weight_state())
        # In turns, so that a prefix of the one would be there for the other.
        found[folder] = [await score(base=False), await score(base=True), await score(base=False)]
    found["queued"] = [
        [sample.response_ids.tolist(), sample.sampler_logprobs.tolist(), sample.policy_version_min]
        for (sample,) in await asyncio.gather(*under_way)
    ]
    for base in (False, True):
        sample = (await engine.sample([request], SamplingConfig(1.0, 8), 7, base))[0]
        found[f"sample-{base}"] = [sample.response_ids.tolist(), sample.sampler_logprobs.tolist()]
        found["versions"] = [sample.policy_version_min, sample.policy_version_max]
    engine.shutdown()
    return found


def logprobs(model: Any, response: Ids | list[int]) -> np.ndarray:
    return logprobs_of(model, PROMPT, response).detach().numpy()


def test_an_engine_is_the_student_with_the_adapter_and_the_base_without(default_model: Path, tmp_path: Path) -> None:
    from rollout.engine import files_digest

    students, digests = [adapted(default_model, seed) for seed in (0, 1)], []
    folders = [tmp_path / str(seed) for seed in (0, 1)]
    for folder, student in zip(folders, students, strict=True):
        folder.mkdir()
        files = adapter_files(trained(student), CONFIG)
        digests.append(files_digest(files))
        for name, content in files.items():
            (folder / name).write_bytes(content)
    target = tmp_path / "result.json"
    command = [sys.executable, "-m", "tests.engine.test_adapter", str(default_model), str(target), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(target.read_text())

    base = logprobs(plain(default_model), RESPONSE)
    assert np.abs(np.array(found["fresh"]) - base).max() < 1e-3
    for folder, student in zip(folders, students, strict=True):
        expected = logprobs(student, RESPONSE)
        assert np.abs(expected - base).mean() > 0.3
        for number, reference in enumerate((expected, base, expected)):
            assert np.abs(np.array(found[str(folder)][number]) - reference).max() < 1e-3, number
    assert found["state"] == [[version, digest] for version, digest in enumerate(digests, 3)]
    assert found["versions"] == [4, 4]
    versions = [version for *_, version in found["queued"]]
    assert versions == [3] * 6 + [4] * 6
    for response, sampled, version in found["queued"]:
        assert np.abs(np.array(sampled) - logprobs(students[version - 3], response)).max() < 1e-3, version
    for key, model in (("sample-False", students[1]), ("sample-True", plain(default_model))):
        response, sampled = found[key]
        assert np.abs(np.array(sampled) - logprobs(model, response)).max() < 1e-3, key


if __name__ == "__main__":
    model, target, *folders = sys.argv[1:]
    Path(target).write_text(json.dumps(asyncio.run(drive(model, folders))))
