"""A vLLM engine behind the three acts the pipeline needs: sample, score, take new weights.

What we know of vllm's private sides is in `rollout.vllm_quirks`. Legend: P = prompt tokens, T = response tokens.
Log-probs are natural logarithms of the untempered model, computed by vLLM in float32 from its logits.
"""

import asyncio
import contextlib
import hashlib
import itertools
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evidence.records import Floats, Ids, RolloutRequest, Sample
from rollout import vllm_quirks as quirks
from rollout.config import AdapterConfig, EngineConfig, SamplingConfig
from rollout.engine_arguments import engine_arguments, optional_arguments
from rollout.outputs import require_ended, response_logprobs, to_sample
from rollout.tally import Tally
from rollout.vllm_quirks.environment import enter_cpu_environment, enter_gpu_environment
from rollout.vllm_quirks.scheduling import FIRST, scheduling_arguments
from rollout.waits import Turnstile

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput


class Engine:
    """One vLLM engine. All methods are coroutines on one event loop; construct it inside that loop.

    Args:
        model: Hugging Face folder or hub id.
        config: the pool's settings.
        device: "cpu" or "cuda".
        weight_backend: name in vLLM's WeightTransferEngineFactory, or None for an engine whose weights are frozen.
        worker_extension: dotted name of the class that vLLM mixes into its workers and that registers the backend.
        adapter: the kind of adapter that the engine takes (`load_adapter`), if any.
        in_flight: whether requests under way go on with new weights (their prompts and what they have so far are read
            again); otherwise an update waits for them.
        sleeps: whether the engine can give back its GPU's memory for a time (`sleep`, `wake_up`).
    """

    def __init__(
        self,
        model: str,
        config: EngineConfig,
        device: str,
        weight_backend: str | None = None,
        worker_extension: str | None = None,
        in_flight: bool = True,
        adapter: AdapterConfig | None = None,
        sleeps: bool = False,
    ) -> None:
        if device == "cpu":
            enter_cpu_environment(config)
        else:
            enter_gpu_environment()
        load_vllm()
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._mends_adapter = adapter is not None and device == "cpu"
        self.window, self._pause_mode = config.window, "keep" if in_flight else "wait"
        self._adapter: LoRARequest | None = None
        self._adapter_digest = ""
        self._adapted = Turnstile()  # requests that are for the adapter
        self._ids, self.tally = itertools.count(), Tally()
        self._llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                **(engine_arguments(model, config, device) | scheduling_arguments(config)),
                disable_log_stats=True,
                **optional_arguments(weight_backend, worker_extension, adapter, self._mends_adapter, sleeps),
            ),
            stat_loggers=[quirks.statistics_logger(self.tally)],
        )

    async def sample(
        self,
        requests: Sequence[RolloutRequest],
        sampling: SamplingConfig,
        seed: int,
        base: bool = False,
        *,
        begun: Callable[[], None] = lambda: None,
    ) -> list[Sample]:
        """One response per request, under its `sampler_ids`; requests with the same prompt share one prefill.

        base: by the model itself, without the adapter that it may have; so in the methods below. begun: is told first.

        Returns samples in the order of `requests`; `sampler_logprobs` are under the prompt sampled from.
        """
        begun()
        groups: dict[bytes, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(request.sampler_ids.tobytes(), []).append(index)
        offsets = itertools.accumulate((len(members) for members in groups.values()), initial=seed)
        outputs = await asyncio.gather(
            *(
                self._generate(requests[members[0]].sampler_ids, sampling, len(members), offset, base=base)
                for members, offset in zip(groups.values(), offsets, strict=False)
            )
        )
        samples: dict[int, Sample] = {}
        for members, output in zip(groups.values(), outputs, strict=True):
            for index, completion in zip(members, output.outputs, strict=True):
                samples[index] = to_sample(requests[index], completion)
        return [samples[index] for index in range(len(requests))]

    async def texts(
        self, prompts: Sequence[Ids], sampling: SamplingConfig, num_samples: int, seed: int
    ) -> list[list[str]]:
        """`num_samples` decoded answers per prompt, for probes."""
        outputs = await asyncio.gather(
            *(
                self._generate(prompt, sampling, num_samples, seed + index * num_samples, detokenize=True)
                for index, prompt in enumerate(prompts)
            )
        )
        for index, output in enumerate(outputs):
            for completion in output.outputs:
                require_ended(f"probe: prompt {index}", completion)
        return [[completion.text for completion in output.outputs] for output in outputs]

    async def score(self, prompts: Sequence[Ids], responses: Sequence[Ids], base: bool = False) -> list[Floats]:
        """log pi(y_t | prompt, y_<t) for every response token; float32 [T] per row. Nothing is sampled or kept.

        Rows with the same prompt share its prefill, whether or not they come in one call.
        """
        rows = zip(prompts, responses, strict=True)
        return list(await asyncio.gather(*(self._score(prompt, response, base) for prompt, response in rows)))

    async def check(self, prompt_ids: Ids, response_ids: Ids, base: bool = False) -> Floats:
        """As `score` of one row, before all that waits, and beside as much as the engine runs at a time."""
        return await self._score(prompt_ids, response_ids, base, FIRST)

    async def _generate(
        self,
        prompt_ids: Ids,
        sampling: SamplingConfig,
        num_samples: int,
        seed: int,
        detokenize: bool = False,
        base: bool = False,
    ) -> "RequestOutput":
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            n=num_samples,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            seed=seed,
            stop_token_ids=list(sampling.end_ids),
            logprobs=0,  # the sampled token's own
            flat_logprobs=True,
            detokenize=detokenize,
            skip_special_tokens=not sampling.keeps_special,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        return await self._run(prompt_ids, params, base)

    async def _score(self, prompt_ids: Ids, response_ids: Ids, base: bool, priority: int = 0) -> Floats:
        full = np.concatenate([prompt_ids, response_ids])
        if len(full) > self.window:
            raise ValueError(f"scoring: {len(full)} tokens do not fit the engine's window of {self.window}")
        if len(response_ids) == 0:
            return np.zeros(0, np.float32)
        return response_logprobs(await self._read(full, len(prompt_ids), base, priority), len(response_ids))

    async def _read(self, ids: Ids, num_prompt: int, base: bool, priority: int = 0) -> "RequestOutput":
        """A forward pass over `ids` with the log-probs of its tokens from place `num_prompt` on; what a cached prefix
        gives ends before the last of the prompt. The last token is not sent but sampled, as the only one allowed."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            **quirks.scoring_parameters(num_prompt, int(ids[-1])),
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        return await self._run(ids[:-1], params, base, priority)

    async def _run(self, prompt_ids: Ids, params: Any, base: bool, priority: int = 0) -> "RequestOutput":
        async with contextlib.nullcontext() if base else self._adapted:
            return await self._finished(prompt_ids, params, base, priority)

    async def _finished(self, prompt_ids: Ids, params: Any, base: bool, priority: int = 0) -> "RequestOutput":
        from vllm.exceptions import VLLMValidationError

        final, prompt = None, {"prompt_token_ids": prompt_ids.tolist()}
        adapter = None if base else self._adapter
        try:
            name = str(next(self._ids))
            async for output in self._llm.generate(prompt, params, name, lora_request=adapter, priority=priority):
                final = output
        except VLLMValidationError as error:  # which is no ValueError
            found = f"engine: found a request of {len(prompt_ids)} tokens, which vLLM refuses"
            raise RuntimeError(f"{found}: {error}") from None
        assert final is not None
        return final

    # The weight hand-off: vLLM's own lifecycle, passed through.

    async def init_weight_transfer_engine(self, request: Any) -> None:
        await self._llm.init_weight_transfer_engine(request)

    async def start_weight_update(self) -> None:
        await self._llm.pause_generation(mode=self._pause_mode, clear_cache=True)
        await self._llm.start_weight_update()

    async def update_weights(self, request: Any) -> None:
        await self._llm.update_weights(request)

    async def finish_weight_update(self) -> None:
        await self._llm.finish_weight_update()

    async def update_weight_version(self, version: str) -> None:
        """Commit a version and let sampling go on."""
        await self._llm.update_weight_version(version)
        await self._llm.resume_generation()

    async def load_adapter(self, files: Mapping[str, bytes], version: int) -> None:
        """Samples and scores with the adapter of these files from now on. What is under way ends with the one before,
        also what waits in vLLM's queue, which would otherwise name an adapter that is no more; what comes meanwhile
        waits for the new one.

        Each version has a name of its own, so that no prefix comes from another's cache.
        """
        from vllm.lora.request import LoRARequest

        await self._adapted.close()
        if self._mends_adapter:
            await self._llm.collective_rpc("mend_adapter_operators")
        with tempfile.TemporaryDirectory(prefix="edge-opd-adapter-") as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            adapter = LoRARequest(f"version-{version}", version + 1, folder)
            if self._adapter is not None:
                await self._llm.remove_lora(self._adapter.lora_int_id)
            await self._llm.add_lora(adapter)
        self._adapter, self._adapter_digest = adapter, files_digest(files)
        await self._llm.update_weight_version(str(version))
        await self._adapted.open()

    async def sleep(self) -> None:
        """Between requests: weights go to the host's memory, and the cache of prefixes is given up."""
        await self._llm.sleep(level=1, mode="wait")

    async def wake_up(self) -> None:
        await self._llm.wake_up()

    async def weight_state(self) -> tuple[int, str]:
        """(version, digest of the last weights received); version 0 and "" before the first update."""
        version = await self._llm.get_weight_version()
        if self._adapter is not None:
            return int(version), self._adapter_digest
        digests = set(await self._llm.collective_rpc("received_digest"))
        if len(digests) != 1:
            raise RuntimeError(f"the engine's workers hold different weights: digests {sorted(digests)}")
        return quirks.version_number(version), digests.pop()

    async def ping(self) -> None:
        """Answers once the engine's core has, which it does between two steps."""
        await self._llm.get_weight_version()

    def shutdown(self) -> None:
        self._llm.shutdown()


def load_vllm() -> None:
    """Imports what an engine and its core need. The environment of the process has to be set before."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    import vllm.engine.arg_utils
    import vllm.v1.engine.async_llm
    import vllm.v1.engine.core  # noqa: F401


def files_digest(files: Mapping[str, bytes]) -> str:
    """SHA-256 of the files, shortened."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + files[name])
    return digest.hexdigest()[:16]
