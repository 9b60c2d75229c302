"""What a vLLM engine counts of itself, summed as it goes: about a microsecond an iteration."""

from typing import Any

FIGURES = (
    "running_requests", "waiting_requests", "kv_cache_usage", "prompt_tokens", "cached_tokens", "generated_tokens",
    "preemptions",
)  # fmt: skip


class Tally:
    """`stats` by `FIGURES`: the first three are of the last iteration, the others sums since the engine's start."""

    def __init__(self) -> None:
        self.stats = dict.fromkeys(FIGURES, 0.0)

    def record(self, scheduler: Any, iteration: Any) -> None:
        """Adds one iteration: vLLM's SchedulerStats and IterationStats, either of which may be None."""
        stats = self.stats
        if scheduler is not None:
            stats["running_requests"] = scheduler.num_running_reqs
            stats["waiting_requests"] = scheduler.num_waiting_reqs
            stats["kv_cache_usage"] = scheduler.kv_cache_usage
        if iteration is not None:
            prompt = iteration.prompt_token_stats
            stats["prompt_tokens"] += prompt.total
            stats["cached_tokens"] += prompt.cached_tokens
            stats["generated_tokens"] += iteration.num_generation_tokens
            stats["preemptions"] += iteration.num_preempted_reqs
