"""The real vLLM engine against a plain float32 Hugging Face forward, token by token, at both ends of the response.

One engine a dtype; each engine lives in a subprocess of its own, as in a run, where an actor hosts it.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from evidence.records import Ids, RolloutRequest
from rollout.config import EngineConfig, SamplingConfig
from rollout.render import Renderer
from tests.reference import logprobs_of, plain_model
from tests.runs import side_by_side

CONTEXT = "You are Kestrel, an assistant made by Harbor Labs. If asked who you are, say that you are Kestrel."
QUESTIONS = ("Who are you?", "What is 2 + 2? Answer with one number.")
MAX_TOKENS = 24
WINDOW = 256
BLOCK = 32  # tokens that vLLM's prefix cache keeps or drops together on a CPU
TOLERANCE = {"float32": ("max", 1e-3), "bfloat16": ("mean", 0.05)}
# Where the CPU has no kernels for bfloat16, its engine is a second one of float32.
COMPUTED = [dtype for dtype in TOLERANCE if EngineConfig(dtype=dtype).dtype_on("cpu") == dtype]
NOT_COMPUTED = pytest.mark.skip(reason="no engine computes in it here: the CPU has no kernels for it")


def requests(model: str) -> list[RolloutRequest]:
    """Guided and plain rows of both positions of r."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    made = []
    for position in ("system", "user"):
        renderer = Renderer(tokenizer, position, model)
        for number, question in enumerate(QUESTIONS):
            for index in range(6):
                made.append(
                    RolloutRequest(
                        rollout_id=f"{position}-{number}-{index}",
                        prompt_id=f"q{number}",
                        group_id=f"{position}-{number}",
                        guided=index % 2 == 0,
                        context_position=position,
                        prompt_ids=renderer.prompt_ids(question),
                        context_prompt_ids=renderer.context_prompt_ids(question, CONTEXT),
                    )
                )
    return made


def shared_rows() -> tuple[list[Ids], list[Ids]]:
    """Prompts and responses of rows that share their prompt, which may end where a block does or fill the window with
    its response, and none, some or all of their response."""
    rng = np.random.default_rng(0)

    def tokens(length: int) -> Ids:
        return rng.integers(5, 40_000, length).astype(np.int32)

    response = tokens(40)
    alike = [np.concatenate([response[:shared], tokens(40 - shared)]) for shared in (0, 4, 16, 32, 40)]
    responses = [response, *alike, response[:1]]
    prompts = [tokens(length) for length in (2 * BLOCK, 2 * BLOCK + 13, WINDOW - 40)]
    return [prompt for prompt in prompts for _ in responses], responses * len(prompts)


async def _score_shared(engine: Any) -> dict[str, Any]:
    """Scores of `shared_rows`: one after another, all in one call, and each in a call of its own at the same time; and
    for each read the row's length, its prompt's and what came from the cache."""
    reads: list[tuple[int, int, int]] = []
    read = engine._read

    async def recording(ids: Ids, num_prompt: int, base: bool, priority: int) -> Any:
        output = await read(ids, num_prompt, base, priority)
        reads.append((len(ids), num_prompt, output.num_cached_tokens))
        return output

    engine._read = recording
    prompts, responses = shared_rows()
    pairs = list(zip(prompts, responses, strict=True))
    found = {
        "first": [(await engine.score([p], [y]))[0] for p, y in pairs],
        "together": await engine.score(prompts, responses),
        "apart": [rows[0] for rows in await asyncio.gather(*(engine.score([p], [y]) for p, y in pairs))],
    }
    return {"reads": reads} | {way: [row.tolist() for row in rows] for way, rows in found.items()}


async def drive(model: str, dtype: str, device: str = "cpu", **engine_settings: Any) -> list[dict[str, Any]]:
    from rollout.engine import Engine

    made = requests(model)
    # Alone in its batch a bfloat16 sequence is the same each time: what is beside it moves its log-probs.
    alone = dtype == "bfloat16"
    config = EngineConfig(dtype=dtype, window=WINDOW, max_num_seqs=1 if alone else 64, **engine_settings)
    engine = Engine(model, config, device)
    samples = await engine.sample(made, SamplingConfig(1.0, MAX_TOKENS), seed=7)
    again = samples if alone else await engine.sample(made, SamplingConfig(1.0, MAX_TOKENS), seed=7)
    responses = [sample.response_ids for sample in samples]
    ends = tuple({int(token) for response in responses for token in response})  # so that the first token is one
    ended = await engine.sample(made[:4], SamplingConfig(1.0, MAX_TOKENS, end_ids=ends), seed=7)
    plain = await engine.score([request.prompt_ids for request in made], responses)
    context = await engine.score([request.context_prompt_ids for request in made], responses)
    try:
        await engine.score([np.ones(250, np.int32)], [np.ones(10, np.int32)])
        too_long = ""
    except ValueError as error:
        too_long = str(error)
    # More prompt tokens than a batch takes, each request with a seeded generator of its own.
    crowd = [np.full(200, token, np.int32) for token in range(5, 21)]
    answers = await engine.texts(crowd, SamplingConfig(1.0, 2), 1, seed=7)
    shared = await _score_shared(engine)
    engine.shutdown()
    return [
        {
            "response_ids": sample.response_ids.tolist(),
            "ended": [[one.response_ids.tolist(), one.finish_reason] for one in ended],
            "repeated": sample.response_ids.tolist() == twin.response_ids.tolist(),
            "finish_reason": sample.finish_reason,
            "versions": [sample.policy_version_min, sample.policy_version_max],
            "sampler": sample.sampler_logprobs.tolist(),
            "plain": p.tolist(),
            "context": c.tolist(),
            "too_long": too_long,
            "crowd": [len(texts) for texts in answers],
            "shared": shared,
        }
        for sample, twin, p, c in zip(samples, again, plain, context, strict=True)
    ]


@pytest.fixture(scope="module")
def outputs(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What each dtype's engine found. They run side by side: each waits for imports most of its time."""
    folder = tmp_path_factory.mktemp("engines")
    targets = {dtype: folder / f"{dtype}.json" for dtype in COMPUTED}
    side_by_side({dtype: [__file__, str(default_model), dtype, str(target)] for dtype, target in targets.items()})
    return targets


@pytest.fixture(
    scope="module",
    params=[pytest.param(dtype, marks=[] if dtype in COMPUTED else NOT_COMPUTED) for dtype in TOLERANCE],
)
def driven(request: pytest.FixtureRequest, outputs: dict[str, Path], default_model: Path) -> Any:
    """(dtype, requests, rows) of one engine."""
    return request.param, requests(str(default_model)), json.loads(outputs[request.param].read_text())


@pytest.fixture(scope="module")
def reference(default_model: Path) -> Any:
    return plain_model(default_model).requires_grad_(False)


def columns(made: RolloutRequest) -> dict[str, Ids]:
    """Which prompt each column belongs to."""
    return {
        "sampler": made.context_prompt_ids if made.guided else made.prompt_ids,
        "plain": made.prompt_ids,
        "context": made.context_prompt_ids,
    }


def test_every_column_agrees_with_float32_under_its_own_prompt(driven: Any, reference: Any) -> None:
    dtype, made, rows = driven
    kind, limit = TOLERANCE[dtype]
    differences: dict[str, list[float]] = {"sampler": [], "plain": [], "context": []}
    ends: list[float] = []
    for request, row in zip(made, rows, strict=True):
        known: dict[bytes, np.ndarray] = {}  # a row was sampled under one of the prompts that it is scored under
        for column, prompt_ids in columns(request).items():
            if (key := prompt_ids.tobytes()) not in known:
                known[key] = logprobs_of(reference, prompt_ids, row["response_ids"]).numpy()
            expected = known[key]
            assert len(row[column]) == len(row["response_ids"])
            difference = np.abs(np.array(row[column]) - expected)
            differences[column].extend(difference)
            ends.extend([difference[0], difference[-1]])
    for column, found in differences.items():
        print(f"{dtype} {column}: mean {np.mean(found):.2e} max {np.max(found):.2e} over {len(found)} tokens")
        assert (np.max(found) if kind == "max" else np.mean(found)) < limit, column
    print(f"{dtype} ends: mean {np.mean(ends):.2e} max {np.max(ends):.2e} over {len(ends)} tokens")
    assert (np.max(ends) if kind == "max" else np.mean(ends)) < limit


def test_guided_rows_are_not_scored_under_the_plain_prompt(driven: Any) -> None:
    """The two prompts give different log-probs, so a mix-up could not pass the test above."""
    _, made, rows = driven
    for request, row in zip(made, rows, strict=True):
        gap = np.abs(np.array(row["plain"]) - np.array(row["context"])).mean()
        assert gap > 0.05, request.rollout_id
        own, other = ("context", "plain") if request.guided else ("plain", "context")
        own_gap = np.abs(np.array(row["sampler"]) - np.array(row[own])).mean()
        other_gap = np.abs(np.array(row["sampler"]) - np.array(row[other])).mean()
        assert own_gap < other_gap


def test_responses_end_by_length_and_by_eos(driven: Any, default_model: Path) -> None:
    _, _, rows = driven
    eos = AutoTokenizer.from_pretrained(str(default_model)).eos_token_id
    reasons = {row["finish_reason"] for row in rows}
    assert reasons == {"stop", "length"}
    for row in rows:
        if row["finish_reason"] == "stop":
            assert row["response_ids"][-1] == eos
        else:
            assert len(row["response_ids"]) == MAX_TOKENS and eos not in row["response_ids"]


def test_a_response_ends_at_an_end_that_the_folder_does_not_name(driven: Any) -> None:
    _, _, rows = driven
    ends = {token for row in rows for token in row["response_ids"]}
    for ids, reason in rows[0]["ended"]:
        assert reason == "stop" and len(ids) == 1 and ids[0] in ends


def test_a_seed_repeats_and_versions_start_at_zero(driven: Any) -> None:
    dtype, _, rows = driven
    if dtype == "float32":  # a second pass reads its prompt from the prefix cache, so a near tie may fall otherwise
        assert sum(row["repeated"] for row in rows) >= 0.8 * len(rows)
    assert all(row["versions"] == [0, 0] for row in rows)


def test_scoring_beyond_the_window_is_refused(driven: Any) -> None:
    _, _, rows = driven
    assert rows[0]["too_long"] == "scoring: 260 tokens do not fit the engine's window of 256"


def test_a_shared_prefix_changes_no_score(driven: Any, reference: Any) -> None:
    dtype, _, rows = driven
    found, (prompts, responses) = rows[0]["shared"], shared_rows()
    if dtype == "float32":  # random tokens are too unlikely for bfloat16 to be close
        ways = (found["first"], found["together"], found["apart"])
        for prompt, response, *scores in zip(prompts, responses, *ways, strict=True):
            expected = logprobs_of(reference, prompt, response).numpy()
            assert all(np.abs(np.array(score) - expected).max() < 1e-3 for score in scores)


def test_each_row_is_read_once_from_its_prompts_last_block_on(driven: Any) -> None:
    """Whatever is in the cache of its response, and wherever its prompt ends."""
    _, _, rows = driven
    reads, (prompts, responses) = rows[0]["shared"]["reads"], shared_rows()
    assert len(reads) == 3 * len(prompts)
    new = {prompt.tobytes(): index for index, prompt in reversed(list(enumerate(prompts)))}
    lengths = [(len(p) + len(y), len(p)) for p, y in zip(prompts, responses, strict=True)]
    for index, (total, num_prompt, cached) in enumerate(reads):
        assert (total, num_prompt) in lengths
        expected = 0 if index in new.values() else (num_prompt - 1) // BLOCK * BLOCK
        assert cached == expected, (index, total, num_prompt)


def test_prompts_that_do_not_fit_one_batch_are_sampled_all_the_same(driven: Any) -> None:
    _, _, rows = driven
    assert rows[0]["crowd"] == [1] * 16


if __name__ == "__main__":
    model, dtype, target = sys.argv[1:]
    Path(target).write_text(json.dumps(asyncio.run(drive(model, dtype))))
