"""LoRA: what the learner adds, what leaves it, and what a real engine makes of it, against plain float32 forwards."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from evidence.records import Ids, RolloutRequest
from learner.adapter import adapted_names, adapter_files, add_adapter, merged
from learner.config import LearnerConfig
from tests.reference import logprobs_of

CONFIG = LearnerConfig(lora_rank=6, lora_alpha=12)  # not a rank that vLLM has a table for
IDS = torch.arange(5, 25)[None]
PROMPT = np.arange(100, 170, dtype=np.int32)  # more than two blocks of a prefix cache
RESPONSE = np.arange(40, 52, dtype=np.int32)


def plain(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32)


def adapted(path: Path, seed: int) -> Any:
    """The model with an adapter that changes it much."""
    model = plain(path)
    add_adapter(model, CONFIG)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trained(model):
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def trained(model: Any) -> list[tuple[str, Any]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_a_new_adapter_changes_nothing_and_is_all_that_learns(tiny_model: Path) -> None:
    model, base = plain(tiny_model), plain(tiny_model)
    add_adapter(model, CONFIG)
    assert torch.equal(model(IDS).logits, base(IDS).logits)
    layers = {name.rsplit(".", 3)[0] for name, _ in trained(model)}
    assert len(layers) == 2 * 7 and not any("lm_head" in name for name in layers)
    twin = plain(tiny_model)
    add_adapter(twin, CONFIG)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(trained(model), trained(twin), strict=True))


def test_the_merged_model_computes_the_same(tiny_model: Path) -> None:
    model, ordinary = adapted(tiny_model, 0), plain(tiny_model)
    state = merged({name: parameter.detach() for name, parameter in model.named_parameters()}, CONFIG)
    missing, unexpected = ordinary.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}  # tied
    expected = model(IDS).logits
    assert (expected - plain(tiny_model)(IDS).logits).abs().max() > 0.1
    torch.testing.assert_close(ordinary(IDS).logits, expected, atol=1e-4, rtol=1e-4)


def test_its_files_are_pefts_own(tiny_model: Path, tmp_path: Path) -> None:
    model = adapted(tiny_model, 0)
    for name, content in adapter_files(trained(model), CONFIG).items():
        (tmp_path / name).write_bytes(content)
    loaded = PeftModel.from_pretrained(plain(tiny_model), str(tmp_path))
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits)


# A real engine


async def _drive(model: str, folders: list[str]) -> dict[str, Any]:
    from rollout.config import AdapterConfig, EngineConfig, SamplingConfig
    from rollout.engine import Engine

    adapter = AdapterConfig(CONFIG.lora_rank, adapted_names(model, CONFIG))
    engine = Engine(model, EngineConfig(dtype="float32", window=160, max_num_seqs=2), "cpu", adapter=adapter)

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


@pytest.mark.engine
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
    Path(target).write_text(json.dumps(asyncio.run(_drive(model, folders))))
