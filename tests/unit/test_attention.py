"""Attention over packed rows: what each row's own attention gives, however rows are laid out for a kernel."""

import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.varlen import varlen_attn

from learner import attention
from learner.attention import PackedRows, packed_rows, takes_varlen
from learner.batches import pack
from tests.reference import kept_for_backward
from tests.unit.test_student import count, grouped, make_row

SIZE = 16
HEADS = [(4, 2), (4, 4), (2, 1)]  # of queries; of keys and values
# (prompt, response) tokens a row, and how many prompts they share.
PACKS = {
    "unequal": ([(5, 7), (1, 4), (40, 30), (1, 1)], 4),
    "shared": ([(9, 3), (2, 8), (2, 1)], 1),
    "one": ([(3, 6)], 1),
}


def packed_of(sizes: Sequence[tuple[int, int]], num_prompts: int) -> PackedRows:
    rows = grouped([make_row(*size, seed=seed) for seed, size in enumerate(sizes)], num_prompts)
    return pack(rows, count(rows), "response").tokens.packed


def streams_of(packed: PackedRows, heads: tuple[int, int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = [(1, number, len(packed.place_S), SIZE) for number in (heads[0], heads[1], heads[1])]
    return [torch.randn(shape, generator=random).to(dtype).requires_grad_() for shape in shapes]


def attend(streams: Sequence[Tensor], packed: PackedRows) -> Tensor:
    return packed_rows(torch.nn.Identity(), *streams, None, packed=packed)[0]


def row_by_row(streams: Sequence[Tensor], packed: PackedRows) -> Tensor:
    """float64 softmax of each row alone, [1, S, A, D]."""
    query, key, value = (stream[0].double() for stream in streams)  # [A, S, D]
    key, value = (part.repeat_interleave(len(query) // len(part), 0) for part in (key, value))
    rows = []
    for begin, end in pairwise(packed.starts_R1.tolist()):
        own = packed.rows_U[begin:end]
        scores = query[:, own] @ key[:, own].mT / SIZE**0.5
        later = torch.ones(len(own), len(own), dtype=torch.bool).triu(1)
        rows.append((scores.masked_fill(later, -torch.inf).softmax(-1) @ value[:, own]).transpose(0, 1))
    return torch.cat(rows)[packed.place_S][None]


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("kind", PACKS)
def test_each_row_attends_to_itself_and_so_do_gradients(kind: str, heads: tuple[int, int]) -> None:
    packed = packed_of(*PACKS[kind])
    mine, theirs = streams_of(packed, heads), streams_of(packed, heads)
    found, expected = attend(mine, packed), row_by_row(theirs, packed)
    assert found.flatten().tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-5)
    factors = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * factors).sum().backward()
    (expected * factors).sum().backward()
    for one, other in zip(mine, theirs, strict=True):
        assert other.grad.abs().max() > 1e-2
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def torchs_own(streams: Sequence[Tensor], packed: PackedRows) -> Tensor:
    """What autograd makes of padded float32 rows."""
    rows_RL, place_S = packed.padded
    rows = (stream[0].transpose(0, 1)[rows_RL].transpose(1, 2).float() for stream in streams)
    grouped_heads = streams[0].shape[1] != streams[1].shape[1]
    out = torch.nn.functional.scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=grouped_heads)
    return out.transpose(1, 2).flatten(0, 1)[place_S][None].to(streams[0].dtype)


@pytest.mark.parametrize("kind", PACKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_on_a_cpu_it_is_torchs_own_attention_to_the_last_bit(
    heads: tuple[int, int], dtype: torch.dtype, kind: str
) -> None:
    """Gradients too, but for a bfloat16 prompt that rows share: what they add is added up in float32 here."""
    packed = packed_of(*PACKS[kind])
    mine, theirs = streams_of(packed, heads, dtype), streams_of(packed, heads, dtype)
    found, expected = attend(mine, packed), torchs_own(theirs, packed)
    assert torch.equal(found, expected)
    factors = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (found * factors).sum().backward()
    (expected * factors).sum().backward()
    for one, other in zip(mine, theirs, strict=True):
        if dtype == torch.float32 or kind != "shared":
            assert torch.equal(one.grad, other.grad)
        else:
            assert (one.grad - other.grad).norm() < 0.01 * other.grad.norm()


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_padded_rows_are_given_to_a_kernel_for_heads_of_one_number(
    heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU in float32, or with values of another size than queries: torch's kernel for them knows no groups of
    heads (its page of `scaled_dot_product_attention`), and its plain products keep a matrix of scores for each."""
    packed, asked = packed_of(*PACKS["unequal"]), list[tuple[set[int], bool]]()
    attend_padded = torch.nn.functional.scaled_dot_product_attention

    def seen(*rows: Tensor, enable_gqa: bool = False, **named: object) -> Tensor:
        asked.append(({row.shape[1] for row in rows}, enable_gqa))
        return attend_padded(*rows, enable_gqa=enable_gqa, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    wide = [torch.cat([stream, stream], -1) for stream in streams_of(packed, heads)]
    query, key, value = (part[0].transpose(0, 1) for part in (*wide[:2], wide[2][..., :SIZE]))
    found = attention._by_padding(query, key, value, packed, None)
    assert asked == [({heads[0]}, False)]
    rows_RL, place_S = packed.padded
    rows = (part[rows_RL].transpose(1, 2) for part in (query, key, value))
    expected = attend_padded(*rows, is_causal=True, enable_gqa=heads[0] != heads[1])
    assert torch.equal(found, expected.transpose(1, 2).flatten(0, 1)[place_S])


def test_what_is_kept_for_the_backward_pass_is_packed() -> None:
    """A long row and short ones: padded they are 6 times as many tokens."""
    packed = packed_of([(100, 500), *[(10, 10)] * 12], 13)
    tokens, padded = len(packed.place_S), packed.padded[0].numel()
    assert padded > 6 * tokens
    with kept_for_backward() as kept:
        attend(streams_of(packed, (4, 2)), packed)
    of_tokens = 4 * SIZE * tokens * (4 + 2 + 2 + 4)  # queries, keys, values and what came of them
    assert sum(kept.values()) <= of_tokens + padded * (8 + 4 * 4) + 8 * tokens  # row indices, and a number a head


# The kernel of GPUs: what it is asked, what it answers, and when.


def stand_in(
    query: Tensor, key: Tensor, value: Tensor, *arguments: object, enable_gqa: bool = False, **named: object
) -> Tensor:
    """flash attention's rows by themselves, in float64; what it is asked is what torch's own takes."""
    assert enable_gqa
    told = inspect.signature(varlen_attn).bind(query, key, value, *arguments, **named).arguments
    assert told["window_size"] == (-1, 0)  # causal
    assert told["cu_seq_q"].dtype == torch.int32 and told["cu_seq_q"] is told["cu_seq_k"]
    assert told["max_q"] == told["max_k"] == told["cu_seq_q"].diff().max()
    alone = PackedRows(torch.arange(len(query)), told["cu_seq_q"], torch.arange(len(query)), told["max_q"])
    return row_by_row([part.transpose(0, 1)[None] for part in (query, key, value)], alone)[0].to(query.dtype)


def stand_in_2_11(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: object = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """With the arguments of torch 2.11's, which is never told of grouped heads."""
    told = {"scale": scale, "window_size": window_size, "enable_gqa": True}
    return stand_in(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **told)


@pytest.mark.parametrize("kernel", [stand_in, stand_in_2_11])
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("kind", PACKS)
def test_rows_laid_out_for_the_kernel_give_what_padded_ones_do(
    kind: str, heads: tuple[int, int], kernel: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = packed_of(*PACKS[kind])
    mine, theirs = streams_of(packed, heads), streams_of(packed, heads)
    expected = attend(theirs, packed)
    monkeypatch.setattr(attention, "takes_varlen", lambda *streams: True)
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    found = attend(mine, packed)
    assert found.flatten().tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-5)
    factors = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * factors).sum().backward()
    (expected * factors).sum().backward()
    for one, other in zip(mine, theirs, strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", PACKS)
def test_rows_that_share_nothing_are_given_to_the_kernel_as_they_are(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, given = packed_of(*PACKS[kind]), list[Tensor]()
    shares = kind == "shared"
    assert packed.share_nothing is not shares
    if not shares:
        assert torch.equal(packed.rows_U, torch.arange(len(packed.place_S)))
        assert torch.equal(packed.place_S, packed.rows_U)

    def kernel(*arguments: Any, enable_gqa: bool = False, **named: Any) -> Tensor:
        given.extend(arguments[:3])
        return stand_in(*arguments, enable_gqa=enable_gqa, **named)

    monkeypatch.setattr(attention, "takes_varlen", lambda *streams: True)
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    streams = [stream.transpose(1, 2).contiguous().transpose(1, 2) for stream in streams_of(packed, (4, 2))]
    out = attend(streams, packed)  # laid out as a model's projections are, token by token
    places = [stream.untyped_storage().data_ptr() for stream in streams]
    assert ([one.untyped_storage().data_ptr() for one in given] == places) is not shares
    sums = {type(step[0]).__name__ for step in out.grad_fn.next_functions}
    assert not any("Index" in name for name in sums)  # whose backward pass sorts, and adds up


def test_torchs_kernel_takes_packed_rows_and_gives_their_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its operators' own rules of shapes, forward and backward, which need no card."""
    monkeypatch.setattr(attention, "takes_varlen", lambda *streams: True)
    with FakeTensorMode():
        rows_U, place_S = torch.empty(12, dtype=torch.long), torch.empty(10, dtype=torch.long)
        packed = PackedRows(rows_U, torch.empty(3, dtype=torch.int32), place_S, longest=7)
        shapes = [(1, heads, 10, 64) for heads in (8, 2, 2)]
        streams = [torch.empty(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
        attended = attend(streams, packed)
        assert attended.shape == (1, 10, 8, 64) and attended.dtype == torch.bfloat16
        grads = torch.autograd.grad(attended, streams, torch.empty_like(attended))
        assert [grad.shape for grad in grads] == shapes


@pytest.mark.parametrize(
    ("device", "dtype", "size", "of_values", "expected"),
    [
        ("cuda", torch.bfloat16, 64, 64, True),
        ("cuda", torch.float16, 256, 256, True),
        ("cuda", torch.float32, 64, 64, False),
        ("cuda", torch.bfloat16, 264, 264, False),
        ("cuda", torch.bfloat16, 60, 60, False),
        ("cuda", torch.bfloat16, 192, 128, False),
        ("cpu", torch.bfloat16, 64, 64, False),
    ],
)
def test_the_kernel_is_for_16_bits_on_a_gpu(
    device: str, dtype: torch.dtype, size: int, of_values: int, expected: bool
) -> None:
    with FakeTensorMode():
        sizes = (size, size, of_values)
        streams = [torch.empty(5, 2, each, dtype=dtype, device=device) for each in sizes]
        assert takes_varlen(*streams) is expected
