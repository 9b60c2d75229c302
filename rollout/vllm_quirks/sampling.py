"""What we know of vLLM's sampler, in an entry as this folder has them.

Legend: B = rows, V = the vocabulary, W = the largest logits of a row.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BESIDE = 32  # logits that are looked at beyond the k-th: those that equal it are kept with it
MOST = 512  # beyond so large a k, a row is sorted
LANES = 64  # a multiple of the numbers that an instruction adds at once; see `top_k_first`


def look_for_top_k_first() -> None:
    """On a CPU a row's k largest logits are looked for first, and top-p among them.

    Seen: 0.32.0, sorts the whole vocabulary for every row and token where a request has both top-k and top-p.
    Without: a third of a small model's processor time in a probe.
    Contract: test_a_cpu_sorts_the_whole_vocabulary_for_top_p
    """
    from vllm.platforms import current_platform
    from vllm.v1.sample.ops import topk_topp_sampler as place

    usual: Any = place.apply_top_k_top_p_pytorch
    if current_platform.is_cpu() and not isinstance(usual, partial):
        place.apply_top_k_top_p_pytorch = partial(top_k_first, usual)


def top_k_first(
    usual: "Callable[..., Tensor]",
    logits: "Tensor",
    k: "Tensor | None",
    p: "Tensor | None",
    allow_cpu_sync: bool = False,
) -> "Tensor":
    """What `usual` makes of logits [B, V] with k and p [B], bit for bit: logits that are not among the first k or
    within p are -inf.

    `usual` gets the W largest only. V - W is a multiple of the processor's lanes, and what is not among the first k
    adds 0, so that a sum over a row has the same terms in the same order. Rows that these do not decide are sorted.
    """
    width = _width(logits, k, p)
    if k is None or p is None or not width:
        return usual(logits, k, p, allow_cpu_sync)
    largest_BW, places_BW = logits.topk(width, dim=1)
    kept_BW = usual(largest_BW.clone(), k.clamp(max=width), p, allow_cpu_sync)
    rest = (~_decided(largest_BW, kept_BW, k)).nonzero().flatten()
    sorted_rows = usual(logits[rest], k[rest], p[rest], allow_cpu_sync) if len(rest) else None
    logits.fill_(-float("inf")).scatter_(1, places_BW, kept_BW)
    if sorted_rows is not None:
        logits[rest] = sorted_rows
    return logits


def _width(logits: "Tensor", k: "Tensor | None", p: "Tensor | None") -> int:
    """W; 0 where all rows have to be sorted."""
    few = k[k <= MOST] if k is not None and p is not None else ()
    if not len(few):
        return 0
    wanted, vocabulary = int(max(few)) + BESIDE, logits.shape[1]
    width = wanted + (vocabulary - wanted) % LANES
    return width if 8 * width <= vocabulary else 0


def _decided(largest_BW: "Tensor", kept_BW: "Tensor", k: "Tensor") -> "Tensor":
    """The rows [B] of which the W largest logits are enough: all that equal the k-th are among them, and of those that
    equal the last one kept, all are kept. Otherwise the order of equal ones, which is the sort's, decides."""
    width = largest_BW.shape[1]
    kth_B = largest_BW.gather(1, k.clamp(max=width).long().unsqueeze(1) - 1).squeeze(1)
    last_B1 = kept_BW.masked_fill(kept_BW == -float("inf"), float("inf")).amin(1, keepdim=True)
    whole_B = (kept_BW == last_B1).sum(1) == (largest_BW == last_B1).sum(1)
    return (k <= MOST) & (largest_BW[:, -1] < kth_B) & whole_B
