"""Stand-ins for the heavy seams: an engine that is a pure function, and a random model that every engine can load."""

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evidence.records import Floats, Ids, RolloutRequest, Sample, ScoredSample
from rollout.config import SamplingConfig

if TYPE_CHECKING:
    from torch import Tensor

    from learner.config import LearnerConfig


def fake_logprobs(prompt_ids: Ids, response_ids: Ids, model: str = "") -> Floats:
    """float32 [T] in (-8, 0): each a hash of the model, the whole prompt, the response so far and its own token."""
    return np.array(
        [_fake_logprob(prompt_ids, response_ids[: t + 1], model) for t in range(len(response_ids))], np.float32
    )


def _fake_logprob(prompt_ids: Ids, response_so_far: Ids, model: str) -> float:
    prompt, response = (np.asarray(ids, np.int32).tobytes() for ids in (prompt_ids, response_so_far))
    seen = model.encode() + prompt + b"|" + response
    return -8 * (_hash(seen) + 0.5) / 2**32


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "big")


class FakeEngine:
    """A `Sampler`, a `Scorer` and an `EngineClient` whose log-probs are `fake_logprobs` of its model. Remembers each
    call it got.

    sampled: (requests, sampling, seed) a call. scored: (prompts, responses) a call. asked: (prompts, sampling) a call
    of `texts`. told: verbs with their arguments.
    """

    def __init__(self, version: int = 0, model: str = "", name: str = "fake engine") -> None:
        self.version, self.model, self.name, self.digest = version, model, name, ""
        self.told: list[tuple[object, ...]] = []
        self.sampled: list[tuple[list[RolloutRequest], SamplingConfig, int]] = []
        self.scored: list[tuple[list[Ids], list[Ids]]] = []
        self.asked: list[tuple[list[Ids], SamplingConfig]] = []

    async def start(self) -> str:
        self.told.append(("start",))
        return "10.0.0.1"

    async def sample(
        self,
        requests: Sequence[RolloutRequest],
        sampling: SamplingConfig,
        seed: int,
        base: bool = False,
        *,
        begun: Callable[[], None] = lambda: None,
    ) -> list[Sample]:
        begun()
        await asyncio.sleep(0)  # as whatever is asked of another process
        self.sampled.append((list(requests), sampling, seed))
        return [self._sample(request, sampling, seed + index) for index, request in enumerate(requests)]

    async def texts(
        self, prompts: Sequence[Ids], sampling: SamplingConfig, num_samples: int, seed: int
    ) -> list[list[str]]:
        self.asked.append((list(prompts), sampling))
        return [[f"{prompt.tolist()} {seed + index}" for index in range(num_samples)] for prompt in prompts]

    async def tell(self, verb: str, *arguments: object) -> None:
        self.told.append((verb, *arguments))

    async def weight_state(self) -> tuple[int, str]:
        return self.version, self.digest

    async def stats(self) -> dict[str, float]:
        return {"running_requests": 1.0, "generated_tokens": 100.0}

    async def ping(self) -> None:
        await asyncio.sleep(0)

    async def stop(self) -> None:
        self.told.append(("stop",))

    def kill(self, grace_s: float = 0.0) -> None:
        self.told.append(("kill",))

    async def score(self, prompts: Sequence[Ids], responses: Sequence[Ids], base: bool = False) -> list[Floats]:
        await asyncio.sleep(0)
        self.scored.append((list(prompts), list(responses)))
        return [
            fake_logprobs(prompt, response, self.model) for prompt, response in zip(prompts, responses, strict=True)
        ]

    async def check(self, prompt_ids: Ids, response_ids: Ids, base: bool = False) -> Floats:
        (found,) = await self.score([prompt_ids], [response_ids], base)
        return found

    def _sample(self, request: RolloutRequest, sampling: SamplingConfig, seed: int) -> Sample:
        """1 to max_tokens tokens, drawn from a generator that the seed and the sampler's prompt decide."""
        rng = np.random.default_rng([seed, _hash(request.sampler_ids.tobytes())])
        length = int(rng.integers(1, sampling.max_tokens + 1))
        response = rng.integers(3, 1000, length).astype(np.int32)
        return Sample(
            request=request,
            response_ids=response,
            sampler_logprobs=fake_logprobs(request.sampler_ids, response, self.model),
            finish_reason="length" if length == sampling.max_tokens else "stop",
            policy_version_min=self.version,
            policy_version_max=self.version,
        )


def scored_step(
    lengths: Sequence[int], *, seed: int = 0, group_size: int = 2, num_wrong: int = 2
) -> list[ScoredSample]:
    """A step with every stream that any evidence reads, every second rollout guided.

    Log-probs are multiples of 1/64 in (-4, 0], so that they tie, also with each other, and add without rounding.
    """
    rng = np.random.default_rng(seed)

    def ids(length: int) -> Ids:
        return rng.integers(0, 50_000, length, dtype=np.int32)

    def logprobs(length: int) -> Floats:
        return (-rng.integers(0, 256, length) / 64).astype(np.float32)

    return [
        ScoredSample(
            sample=Sample(
                request=RolloutRequest(
                    rollout_id=f"r{index}",
                    prompt_id=f"p{index // group_size}",
                    group_id=f"g{index // group_size}",
                    guided=index % 2 == 0,
                    context_position="system",
                    prompt_ids=ids(3),
                    context_prompt_ids=ids(5),
                    wrong_context_prompt_ids=tuple(ids(4 + wrong) for wrong in range(num_wrong)),
                ),
                response_ids=ids(length),
                sampler_logprobs=logprobs(length),
                finish_reason="stop",
                policy_version_min=0,
                policy_version_max=0,
            ),
            teacher_context_logprobs=logprobs(length),
            teacher_logprobs=logprobs(length),
            teacher_version=0,
            student_logprobs=logprobs(length),
            wrong_context_logprobs=tuple(logprobs(length) for _ in range(num_wrong)),
        )
        for index, length in enumerate(lengths)
    ]


def tiny_model(
    folder: Path,
    *,
    vocab: int = 2048,
    dtype: str = "float32",
    tied: bool = True,
    seed: int = 0,
    tokenizer_from: Path | None = None,
    **overrides: Any,
) -> Path:
    """Saves a random LlamaForCausalLM of two layers as an ordinary Hugging Face folder, and returns the folder.

    Weights are wide (deviation 0.2), so that a token's log-prob depends on every token before it. With
    `tokenizer_from` that folder's tokenizer is saved beside them; `vocab` is then to be its 49152.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**settings | overrides))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    if tokenizer_from is not None:
        AutoTokenizer.from_pretrained(str(tokenizer_from)).save_pretrained(folder)
    return folder


def repeat_head(folder: Path) -> Path:
    """Writes a tied model's embedding into its file again, as the head: fine-tuning tools leave such folders."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    assert "lm_head.weight" not in tensors
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
    return folder


Probe = dict[str, tuple[int, int]]  # rate -> (successes, answers)


def fake_run(
    folder: Path,
    probes: dict[int, Probe],
    diagnostics: dict[int, dict[str, dict[str, float]]] | None = None,
    answers: Sequence[tuple[str, str]] = (),
    **settings: dict[str, Any],
) -> Path:
    """A run directory as `edge-opd run` leaves one, from figures given; returns the folder.

    probes: step -> rates. diagnostics: step -> split -> means, into metrics.jsonl. answers: (question, answer) of the
    probe at step 0. settings: tables of the recipe, such as run={"steps": 2}.
    """
    from cluster.config import Recipe, dump
    from cluster.typed import build

    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(dump(build(Recipe, settings, "fake")))
    _write_lines(folder / "probes.jsonl", [_probe_object(step, rates) for step, rates in probes.items()])
    steps = [{"step": step, "wall_s": 30.0, "diagnostics": split} for step, split in (diagnostics or {}).items()]
    _write_lines(folder / "metrics.jsonl", steps)
    if answers:
        (folder / "answers").mkdir()
        rows = [{"probe": "identity", "question": question, "answer": answer} for question, answer in answers]
        _write_lines(folder / "answers" / "step-000000.jsonl", rows)
    return folder


def _probe_object(step: int, rates: Probe) -> dict[str, Any]:
    counts = {("n_capability" if rate in ("capability", "side_effect") else "n"): n for rate, (_, n) in rates.items()}
    return {"step": step, "probe": "identity", **{rate: k / n for rate, (k, n) in rates.items()}, **counts}


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class PlainLearner:
    """A `ZeroEngine` of one rank in plain torch: a float32 student under SGD. Remembers each forward's log-probs."""

    rank, num_ranks = 0, 1

    def __init__(self, path: Path, config: "LearnerConfig") -> None:
        import torch

        from learner.engine import divergence_of
        from learner.load import load_causal_lm
        from learner.logits import head_of
        from learner.model import Student
        from learner.parts import PartClock

        causal_lm = load_causal_lm(str(path), torch.float32)
        self.vocabulary, self.lr = len(head_of(causal_lm).weight), config.lr
        self.student = Student(causal_lm, config.head_chunk_tokens, divergence_of(config, self.vocabulary))
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=config.lr)
        self.seen: list[Tensor] = []
        self.clock, self.device = PartClock(on_gpu=False), torch.device("cpu")

    def forward(self, tokens: Any, teacher: Any = None) -> "tuple[Tensor, Tensor | None]":
        readings = self.student(*tokens, teacher=teacher)
        self.seen.append(readings[0].detach())
        return readings[0], readings[1] if teacher is not None else None

    def step(self, micro_batches: Sequence[Any], loss_of: "Callable[[Any], Tensor]", skips: bool = False) -> float:
        self.optimizer.zero_grad()
        for batch in micro_batches:
            loss_of(batch).backward()
        self.optimizer.step()
        return 0.0
