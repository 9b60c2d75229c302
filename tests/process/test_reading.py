"""Reading scores from vLLM's own result of a pass, without an engine."""

from collections.abc import Sequence

import pytest


class Pass:
    """What vLLM hands over of one pass over `ids`, `cached` of them from its cache, by one of its two model runners."""

    def __init__(self, ids: Sequence[int], cached: int, runner: int) -> None:
        from vllm.logprobs import FlatLogprobs

        self.num_cached_tokens, self.prompt_logprobs = cached, FlatLogprobs()
        self.prompt_logprobs.append(None)
        for place in range(1, len(ids)):
            if place > cached:
                self.prompt_logprobs.append_fast([ids[place]], [-float(place)], iter([1]), [None])
            elif runner == 1:
                self.prompt_logprobs.append_fast([ids[place]], [float("nan")], iter([1]), [None])


@pytest.mark.parametrize("runner", [1, 2])
@pytest.mark.parametrize("cached", range(7))
def test_scores_are_read_whatever_a_runner_says_of_cached_places(cached: int, runner: int) -> None:
    """Four prompt tokens and three of the response; GPUs have the second runner."""
    from rollout.engine import response_logprobs

    found = response_logprobs(Pass(range(7), cached, runner), 4, 3)  # type: ignore[arg-type]
    if cached < 4:
        assert found is not None and found.tolist() == [-4.0, -5.0, -6.0]
    else:
        assert found is None
