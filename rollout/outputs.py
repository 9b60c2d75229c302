"""What vLLM hands over of a request, as the pipeline's own types. Legend: T = response tokens."""

from typing import TYPE_CHECKING

import numpy as np

from evidence.records import Floats, RolloutRequest, Sample
from rollout.vllm_quirks import INITIAL_VERSION, version_number

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput, RequestOutput


def to_sample(request: RolloutRequest, completion: "CompletionOutput") -> Sample:
    """A finished response to a request.

    Raises:
        RuntimeError: it was aborted.
    """
    versions = [version_number(span.version) for span in completion.weight_versions or []]
    require_ended(f"sampling: rollout {request.rollout_id}", completion)
    flat = completion.logprobs
    assert flat is not None and completion.finish_reason is not None
    starts = np.asarray(flat.start_indices)
    return Sample(
        request=request,
        response_ids=np.asarray(completion.token_ids, np.int32),
        sampler_logprobs=np.asarray(flat.logprobs, np.float32)[starts],
        finish_reason=completion.finish_reason,
        policy_version_min=min(versions, default=INITIAL_VERSION),
        policy_version_max=max(versions, default=INITIAL_VERSION),
    )


def response_logprobs(output: "RequestOutput", num_response: int) -> Floats:
    """Log-probs [T] of the `num_response` tokens that a pass of `Engine._read` ends with.

    A token's is read at the token before it. All but the last are the prompt's in vLLM's eyes, the last is sampled.

    Raises:
        RuntimeError: vLLM read fewer tokens than were asked for.
    """
    require_ended(f"scoring: a row of {len(output.prompt_token_ids or ()) + 1} tokens", output.outputs[0])
    prompt, sampled = output.prompt_logprobs, output.outputs[0].logprobs
    num_read = len(output.prompt_token_ids or ()) - (output.num_cached_tokens or 0)
    if num_read < num_response or prompt is None or sampled is None or len(prompt) < num_response:
        raise RuntimeError(f"scoring: found {num_read} tokens read by the engine, expected at least {num_response}")
    last = num_response - 1
    places = prompt.start_indices[len(prompt) - last :]  # each holds its own token's first
    logprobs = [*(prompt.logprobs[place] for place in places), sampled.logprobs[0]]
    return np.asarray(logprobs, np.float32)


def require_ended(what: str, completion: "CompletionOutput") -> None:
    """RuntimeError for a request that ended otherwise than by itself or by its length, such as one that was aborted."""
    if completion.finish_reason not in ("stop", "length"):
        found = completion.finish_reason
        raise RuntimeError(f"{what}: found finish reason {found!r}, expected 'stop' or 'length': the engine gave it up")
