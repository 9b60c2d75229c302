"""What the rollout service can be told: sampling, guidance, engines. Checked on construction.

A key's meaning is the comment beside it or above it: docs/recipes.md is made of them (`cluster.recipe_page`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from evidence.require import require
from rollout.cores import cpu_flags, has_bfloat16
from rollout.guidance import SPLITS
from rollout.placement import POSITIONS

SAMPLERS = ("student", "teacher")
TEMPERATURES = (0.01, 2.0)  # vLLM takes the first for all between it and 0, and refuses what is above the second
ALONE = 0.9  # the share of a GPU that an engine takes which nobody planned: what is left is CUDA's own
ENGINE_DTYPES = ("bfloat16", "float32", "float16")


@dataclass(frozen=True)
class RolloutConfig:
    """How the rollouts of a step are sampled (arXiv 2605.23493)."""

    # whose engines sample: the student's (on-policy), or the teacher's, whose samples count as the student's version
    sampler: str = "student"
    prompts_per_step: int = 4  # groups in a step
    # the share of the prompts that is drawn from the task's ordinary ones; 0: as large as theirs of all prompts
    ordinary_share: float = 0.0
    samples_per_prompt: int = 8  # the group size: responses to one prompt
    guided_fraction: float = 0.5  # rho_g, the share of responses that are sampled with the context in the prompt
    # fixed: exactly that share of each group, .5 rounded up; bernoulli: each response is drawn independently
    guided_split: str = "fixed"
    # where the context stands: in the system message, after one that the prompt has; at the start of the first user
    # message; at the start of the last one; or in a user message of its own before the last one
    context_position: str = "system"
    temperature: float = 1.0  # of sampling; the log-probs that are recorded are those before temperature
    max_response_tokens: int = 40  # a longer response is cut there
    # the share of a step's prompts that may be refused because they do not fit the window; beyond it the run fails
    max_refused_fraction: float = 0.5
    deadline_s: float = 600.0  # seconds for the sampling and scoring of a step

    def __post_init__(self) -> None:
        require(self.sampler in SAMPLERS, "rollout.sampler", self.sampler, f"one of {SAMPLERS}")
        require(self.prompts_per_step >= 1, "rollout.prompts_per_step", self.prompts_per_step, "at least 1")
        require(0 <= self.ordinary_share < 1, "rollout.ordinary_share", self.ordinary_share, "0 to below 1")
        require(self.samples_per_prompt >= 1, "rollout.samples_per_prompt", self.samples_per_prompt, "at least 1")
        require(0 <= self.guided_fraction <= 1, "rollout.guided_fraction", self.guided_fraction, "0 to 1")
        require(self.guided_split in SPLITS, "rollout.guided_split", self.guided_split, f"one of {sorted(SPLITS)}")
        require(
            self.context_position in POSITIONS,
            "rollout.context_position",
            self.context_position,
            f"one of {tuple(POSITIONS)}",
        )
        low, high = TEMPERATURES
        require(low <= self.temperature <= high, "rollout.temperature", self.temperature, f"{low} to {high}")
        require(self.max_response_tokens >= 1, "rollout.max_response_tokens", self.max_response_tokens, "at least 1")
        require(
            0 <= self.max_refused_fraction < 1,
            "rollout.max_refused_fraction",
            self.max_refused_fraction,
            "0 to below 1",
        )
        require(self.deadline_s > 0, "rollout.deadline_s", self.deadline_s, "more than 0 seconds")


@dataclass(frozen=True)
class EngineConfig:
    """One pool of vLLM engines. Those of [student] sample."""

    num_engines: int = 1  # engines in the pool
    dtype: str = "bfloat16"  # of weights and compute; float32 for bfloat16 on a CPU that lacks it
    window: int = 512  # tokens of prompt and response together, at most the positions of the model
    tensor_parallel_size: int = 1  # workers that one engine is split over; divides the attention heads
    max_num_seqs: int = 64  # sequences that one engine runs at a time
    max_num_batched_tokens: int = 2048  # tokens that one engine computes at a time
    # KV cache of one engine, GiB; 0: 1 on a CPU, and on a GPU what the rest leaves of its share
    kv_cache_gib: float = 0.0
    # the share of a GPU's memory that one engine takes; 0: as planned from what the card has and all on it need
    gpu_memory_utilization: float = 0.0
    # whether it runs without compiling and without CUDA graphs, a faster start and slower steps; auto: on a CPU
    enforce_eager: bool | str = "auto"
    cpu_threads: int = 0  # threads of one engine on a CPU; 0: every core that the job may use
    start_deadline_s: float = 300.0  # seconds for the start of one engine

    @property
    def dtypes(self) -> tuple[str, ...]:
        """What `dtype` may be."""
        return ENGINE_DTYPES

    def is_eager(self, device: str) -> bool:
        """Whether it runs without compiling on "cpu" or "cuda"."""
        return device == "cpu" if self.enforce_eager == "auto" else bool(self.enforce_eager)

    @property
    def measures_its_cache(self) -> bool:
        """Whether an engine on a GPU makes its cache of what the rest leaves of a share that the recipe gives it."""
        return bool(self.gpu_memory_utilization and not self.kv_cache_gib)

    @property
    def cpu_cache_gib(self) -> float:
        """KV cache of one engine on a CPU, GiB."""
        return self.kv_cache_gib or 1.0

    def dtype_on(self, device: str) -> str:
        """What its engines compute in on "cpu" or "cuda". Where that is left to the device, float32 on a CPU: flash
        attention and a GPU's matrix units are for 16 bits. A CPU without kernels for bfloat16 has float32 for it too,
        which holds the same weights."""
        if device != "cpu":
            return "bfloat16" if self.dtype == "auto" else self.dtype
        is_slow = self.dtype == "bfloat16" and not has_bfloat16(cpu_flags())
        return "float32" if self.dtype == "auto" or is_slow else self.dtype

    def __post_init__(self) -> None:
        for key in ("num_engines", "window", "tensor_parallel_size", "max_num_seqs", "max_num_batched_tokens"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        require(self.dtype in self.dtypes, "dtype", self.dtype, f"one of {self.dtypes}")
        known = self.enforce_eager == "auto" or isinstance(self.enforce_eager, bool)
        require(known, "enforce_eager", self.enforce_eager, "true, false or 'auto'")
        require(self.kv_cache_gib >= 0, "kv_cache_gib", self.kv_cache_gib, "0 (by the device) or more")
        share = self.gpu_memory_utilization
        require(0 <= share <= 1, "gpu_memory_utilization", share, "0 (as planned) to 1")
        require(self.cpu_threads >= 0, "cpu_threads", self.cpu_threads, "0 or more")
        require(self.start_deadline_s > 0, "start_deadline_s", self.start_deadline_s, "more than 0 seconds")


@dataclass(frozen=True)
class AdapterConfig:
    """The LoRA adapter that an engine takes: its rank, and the names of the linear layers that have one."""

    rank: int
    targets: tuple[str, ...]


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling parameters of one call. Log-probs are always raw: before temperature, top_p and top_k."""

    temperature: float
    max_tokens: int
    top_p: float = 1.0
    top_k: int = 0  # 0: the whole vocabulary
    end_ids: tuple[int, ...] = ()  # token ids that end a response, beside those that the engine reads from the folder
    keeps_special: bool = False  # whether a decoded text has its special tokens


class TemplateVariables(dict[str, Any]):
    """What the model's chat template is given, by the template's own names: enable_thinking = false, for one. A key
    that the template does not take is refused; chat_template names one of a folder's several templates.

    Raises:
        ValueError: a value that is no text, number, true or false, nor a list or a table of these.
    """

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        super().__init__(values)
        for name, value in self.items():
            require(_is_plain(value), f"template.{name}", value, "text, a number, true, false, a list or a table")


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return all(map(_is_plain, value.values())) if isinstance(value, dict) else isinstance(value, (str, int, float))
