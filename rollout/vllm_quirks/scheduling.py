"""What we know of vLLM's scheduler, in entries as this folder has them, and what is put around it."""

from typing import TYPE_CHECKING, Any

from rollout.ending import end_uncollected, end_with_parent
from rollout.vllm_quirks.sampling import look_for_top_k_first

if TYPE_CHECKING:
    from rollout.config import EngineConfig

LOOKED_UP = "edge_opd_looked_up"  # how many of a request's tokens the prefix cache is asked for
FIRST = -1  # the priority of a check; all else has 0
CHECKS = 1  # the places beyond `max_num_seqs`, which only checks take


def scheduling_arguments(config: "EngineConfig") -> dict[str, Any]:
    """Arguments of an engine that has a place beyond its `max_num_seqs` for a check, which goes first.

    Seen: 0.32.0, a request waits for one that runs to end, also one of a higher priority, and by default for all that
        came before it; an update of the weights puts what ran in front of what waits.
    Without: a canary waits for as many rollouts as the engine runs, and a push takes as long as they are.
    Contract: test_a_check_goes_first_and_has_a_place_of_its_own
    """
    return {
        "scheduler_cls": "rollout.vllm_quirks.scheduling.scheduler",
        "scheduling_policy": "priority",
        "max_num_active_seqs": config.max_num_seqs,
        "max_num_seqs": config.max_num_seqs + CHECKS,
    }


def scheduler(vllm_config: Any, **arguments: Any) -> Any:
    """vLLM's own scheduler with what an engine of ours needs. The engine's core, which makes it, ends with the process
    that started it, and as soon as it is told to; on a CPU it is where the model samples."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    kind = AsyncScheduler if vllm_config.scheduler_config.async_scheduling else Scheduler
    end_with_parent()
    end_uncollected()
    look_for_top_k_first()
    made = kind(vllm_config=vllm_config, **arguments)
    _look_up_prompts(made.kv_cache_manager)
    _keep_a_place(made)
    return made


def _look_up_prompts(manager: Any) -> None:
    """A row that is scored is looked up in the prefix cache as if it were its prompt alone: then at least the last
    token of the prompt and the whole response are read.

    Seen: 0.32.0, looks up as much of a request as it can; at cached places the first of its two model runners leaves
        garbage for log-probs, and the second, which GPUs have, nothing at all.
    Without: a prompt that ends where a block does, or responses that begin alike, leave no log-prob for the first
        response tokens, and each such row has to be read again whole.
    Contract: test_log_probs_of_cached_places_are_lost, test_a_scored_row_is_looked_up_as_its_prompt
    """
    look_up = manager.get_computed_blocks

    def look_up_prompt(request: Any) -> Any:
        wanted = ((request.sampling_params and request.sampling_params.extra_args) or {}).get(LOOKED_UP)
        return look_up(request if wanted is None else _Beginning(request, wanted))

    manager.get_computed_blocks = look_up_prompt


def _keep_a_place(made: Any) -> None:
    """While a check waits, one sequence more may run: see `scheduling_arguments`."""
    schedule, usual = made.schedule, made.max_num_active_reqs

    def schedule_checks_first(*arguments: Any, **options: Any) -> Any:
        waits = bool(made.waiting) and made.waiting.peek_request().priority == FIRST
        made.max_num_active_reqs = usual + CHECKS * waits
        return schedule(*arguments, **options)

    made.schedule = schedule_checks_first


class _Beginning:
    """A request as the prefix cache sees it: its first `num_tokens`, the last of which is always read."""

    def __init__(self, request: Any, num_tokens: int) -> None:
        self._request, self.num_tokens = request, num_tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)
