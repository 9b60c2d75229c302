"""Reading scores from vLLM's own result of a pass, without an engine."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from rollout.outputs import response_logprobs


class Pass:
    """What vLLM hands over of one pass over `ids` without the last, `cached` of them from its cache, by one of its two
    model runners. At cached places the first leaves garbage for log-probs, the second nothing at all."""

    def __init__(self, ids: Sequence[int], cached: int, runner: int, finish_reason: str = "length") -> None:
        from vllm.logprobs import FlatLogprobs

        self.prompt_token_ids, self.num_cached_tokens = list(ids[:-1]), cached
        self.prompt_logprobs, sampled = FlatLogprobs(), FlatLogprobs()
        self.prompt_logprobs.append(None)
        for place in range(1, len(ids) - 1):
            if place > cached:
                self.prompt_logprobs.append_fast([ids[place]], [-float(place)], iter([1]), [None])
            elif runner == 1:
                self.prompt_logprobs.append_fast([ids[place]], [float("nan")], iter([1]), [None])
        sampled.append_fast([ids[-1]], [-float(len(ids) - 1)], iter([1]), [None])
        self.outputs = [SimpleNamespace(logprobs=sampled, finish_reason=finish_reason)]


@pytest.mark.parametrize("runner", [1, 2])
@pytest.mark.parametrize("cached", range(6))
@pytest.mark.parametrize("num_response", [1, 2, 3])
def test_scores_are_read_whatever_a_runner_says_of_cached_places(num_response: int, cached: int, runner: int) -> None:
    """Seven tokens of which the last ones are the response's; GPUs have the second runner."""
    output: Any = Pass(range(7), cached, runner)
    if cached < 7 - num_response:  # tokens of the prompt
        assert response_logprobs(output, num_response).tolist() == [-4.0, -5.0, -6.0][-num_response:]
    else:
        with pytest.raises(
            RuntimeError, match=rf"^scoring: found {6 - cached} tokens read .* at least {num_response}$"
        ):
            response_logprobs(output, num_response)


def test_a_read_that_was_aborted_is_one_line() -> None:
    aborted: Any = Pass(range(7), 0, 1, "abort")
    with pytest.raises(RuntimeError, match=r"^scoring: a row of 7 tokens: found finish reason 'abort', expected "):
        response_logprobs(aborted, 3)
