"""docs/scaling.md's formulas: seconds and bytes against what was measured (docs/benchmarks), and the page itself."""

from pathlib import Path

import pytest

from cluster.sizing.scaling import (
    CONTROLLER,
    GPUS,
    MODELS,
    ROLLOUTS_A_GPU,
    fits,
    rank_bytes,
    shard_bytes,
    stages,
    tables,
    worker_sequences,
)
from cluster.sizing.shape import ModelShape
from cluster.sizing.speed import (
    DEVICES,
    decode_step_seconds,
    device_of,
    forward_flops,
    learn_seconds,
    push_seconds,
    train_flops,
)
from evidence.rule import EvidenceConfig, judge
from evidence.schema import to_table
from evidence.shards import write_shard
from tests.fakes import scored_step
from tests.pages import DOCS

# Dimensions of SmolLM2-135M-Instruct, on which all of docs/benchmarks was measured.
SMALL = ModelShape.decoder(
    layers=30, hidden=576, heads=9, key_heads=3, head=64, inner=1536, vocabulary=49_152, tied=True
)
H100 = DEVICES["H100"]
A_FIFTH = 0.2


def test_the_default_models_size_is_its_shapes() -> None:
    assert pytest.approx(134_515_008, rel=0.001) == SMALL.parameters
    assert push_seconds(SMALL, 1.0) == pytest.approx(269e6, rel=A_FIFTH)  # bytes of a push


def rows_flops(prompt: int, responses: list[int], shares: bool) -> float:
    """Of a forward pass over responses to one prompt, which is read once or with each."""
    of_responses = sum(forward_flops(SMALL, size, prompt + size / 2) for size in responses)
    return of_responses + forward_flops(SMALL, prompt, prompt / 2) * (1 if shares else len(responses))


@pytest.mark.parametrize(
    ("prompt", "response", "measured"),
    [(1500, 40, 7.0), (65, 40, 2.2)],  # a long context; the persona, with the question and the template around it
)
def test_sharing_a_prompt_is_worth_what_was_measured(prompt: int, response: int, measured: float) -> None:
    """Scoring tokens a second with shared prompts over each row alone, 8 rows a group. One engine's own overhead is in
    both; the prefix cache gives whole blocks of 32 tokens only."""
    cached = prompt // 32 * 32
    alone = rows_flops(prompt, [response] * 8, shares=False)
    shared = rows_flops(cached, [response + prompt - cached] * 8, shares=True)
    assert alone / shared == pytest.approx(measured, rel=A_FIFTH)


def test_running_layers_again_costs_what_was_measured() -> None:
    """The learner's step over a plain loop: 0.59 with gradient checkpointing, 0.45 without."""
    again, once = (train_flops(SMALL, 1024, 100, checkpointing) for checkpointing in (True, False))
    assert again / once == pytest.approx(0.59 / 0.45, rel=A_FIFTH)


@pytest.mark.parametrize("sizes", [(40, 12, 1, 33) * 64, (2000, 1, 900, 1400)], ids=["short", "long"])
def test_a_shards_bytes_are_its_files(sizes: tuple[int, ...], tmp_path: Path) -> None:
    records = [judge(one, EvidenceConfig()) for one in scored_step(sizes, num_wrong=0)]
    metadata = dict.fromkeys(("run_id", "step", "model_id", "weights_digest", "code_version"), "1")
    table = to_table(records, metadata | {"mask_rule": EvidenceConfig().to_json()})
    info = write_shard(table, str(tmp_path), "s.arrow")
    written = Path(info.uri).stat().st_size - schema_bytes(table)
    assert shard_bytes(len(sizes), 3, 2, sum(sizes) / len(sizes)) == pytest.approx(written, rel=A_FIFTH)


def schema_bytes(table: object) -> int:
    """What a shard without a row has."""
    import pyarrow as pa

    assert isinstance(table, pa.Table)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.slice(0, 0))
    return int(sink.getvalue().size)


# What a formula says by hand


def test_operations_are_two_a_parameter_and_token_and_attentions_own() -> None:
    assert forward_flops(SMALL, 10, 0) == 20 * SMALL.active
    assert forward_flops(SMALL, 10, 100) - forward_flops(SMALL, 10, 0) == 4 * 30 * 576 * 10 * 100
    assert train_flops(SMALL, 10, 100) == 3 * forward_flops(SMALL, 10, 100)
    assert learn_seconds(SMALL, 10, 100, H100, 4, 0.5) == train_flops(SMALL, 10, 100) / (4 * 989e12 * 0.5)


def test_decoding_is_bound_by_what_is_read_and_then_by_products() -> None:
    dense = MODELS["8B"]
    one = decode_step_seconds(dense, 1, 0, H100, 1, 1.0)
    assert one == pytest.approx(2 * dense.parameters / 3.35e12, rel=0.1)  # all weights once
    assert decode_step_seconds(dense, 8, 0, H100, 1, 1.0) == pytest.approx(one, rel=0.1)
    many = decode_step_seconds(dense, 100_000, 0, H100, 1, 1.0)
    assert many == forward_flops(dense, 100_000, 0) / 989e12
    assert decode_step_seconds(dense, 8, 0, H100, 2, 0.5) == decode_step_seconds(dense, 8, 0, H100, 1, 1.0)


def test_few_sequences_read_few_experts() -> None:
    sparse = MODELS["120B-A12B"]
    one, many = (decode_step_seconds(sparse, number, 0, H100, 1, 1.0) for number in (1, 100))
    assert one == pytest.approx(2 * sparse.active / 3.35e12)
    assert many == pytest.approx(2 * sparse.parameters / 3.35e12)


def test_a_device_is_known_by_its_drivers_name() -> None:
    assert device_of("NVIDIA H100 80GB HBM3") is H100
    assert device_of("NVIDIA H200") is DEVICES["H200"]
    assert device_of("NVIDIA H100 PCIe").flops == 756e12  # type: ignore[union-attr]
    assert device_of("NVIDIA GH200 480GB") is DEVICES["GH200"] and device_of("NVIDIA L40S") is DEVICES["L40S"]
    assert device_of("NVIDIA A100-SXM4-80GB") is DEVICES["A100"] and device_of("NVIDIA A10") is DEVICES["A10"]
    assert device_of("Tesla T4") is None and device_of("NVIDIA A10G") is None and device_of("NVIDIA L40") is None


# The page


def test_what_fits_and_what_does_not() -> None:
    assert [[fits(name, gpus) for gpus in GPUS] for name in MODELS] == [
        [True, True, True], [False, True, True], [False, False, True],
    ]  # fmt: skip
    assert rank_bytes("8B", 64, 3) < rank_bytes("8B", 64, 2) < rank_bytes("8B", 64, 1)
    assert all(worker_sequences(name) > 8 for name in MODELS)


def test_work_that_grows_with_the_cluster_takes_as_long() -> None:
    small, large = (stages("8B", gpus) for gpus in (64, 512))
    assert small.step == pytest.approx(large.step)
    assert small.step == small.sample + small.score + small.learn + small.push


def test_the_controller_is_no_bottleneck_on_the_page() -> None:
    assert all(ROLLOUTS_A_GPU * 512 / stages(name, 512).step < 0.1 * CONTROLLER for name in MODELS)


def test_the_controller_s_figure_is_what_the_benchmarks_page_has() -> None:
    """Of the engines that can do more than it: with slower ones the figure would be theirs."""
    page = (DOCS / "benchmarks" / "README.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith("| controller, 256 engines, which can do 65,536"))
    assert row.split(" | ")[1] == f"{CONTROLLER:,.0f}"


def test_every_model_and_size_is_on_the_page() -> None:
    page = tables()
    assert all(page.count(f"| {name} | {gpus} |") >= 3 for name in MODELS for gpus in GPUS)
    assert page.count("## ") == 5
