r"""The OpenThoughts filter, rule by rule at its boundary, on small parquet files of both layouts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.__main__ import main
from cluster.commands.data import to_text, write_openthoughts
from rollout.tasks.boxed import MAX_CHARS, is_single_expression, last_boxed
from rollout.tasks.openthoughts import INSTRUCTION, RULES, Example, failed_rule, select

TEXTS, BOXED, PROBLEM, REASONING, ONE = RULES
SYSTEM = "Think, then answer."


def metadata_row(problem: str = "p", reasoning: str = "r", solution: str = r"so \boxed{1}") -> dict[str, Any]:
    return {
        "problem": problem,
        "deepseek_reasoning": reasoning,
        "deepseek_solution": solution,
        "ground_truth_solution": solution,
        "domain": "math",
    }


def default_row(problem: str = "p", reasoning: str = "r", solution: str = r"so \boxed{1}") -> dict[str, Any]:
    reply = (
        f"<|begin_of_thought|>\n\n{reasoning}\n\n<|end_of_thought|>\n\n"
        f"<|begin_of_solution|>\n\n{solution}\n\n<|end_of_solution|>"
    )
    turns = [{"from": "user", "value": f"{INSTRUCTION} {problem}"}, {"from": "assistant", "value": reply}]
    return {"system": SYSTEM, "conversations": turns}


MAKERS = {"metadata": metadata_row, "default": default_row}
# (row, the rule that drops it)
BOUNDARIES: list[tuple[Mapping[str, str], str | None]] = [
    ({}, None),
    ({"problem": ""}, TEXTS),
    ({"reasoning": ""}, TEXTS),
    ({"solution": "so 1"}, BOXED),
    ({"solution": r"so \boxed{1"}, BOXED),
    ({"problem": "p" * 4096}, None),
    ({"problem": "p" * 4097}, PROBLEM),
    ({"reasoning": "r" * 6000}, None),
    ({"reasoning": "r" * 6001}, REASONING),
    ({"solution": r"\boxed{\frac{1}{2}}"}, None),
    ({"solution": r"\boxed{1, 2}"}, ONE),
    ({"problem": "p" * 4097, "reasoning": "r" * 6001}, PROBLEM),  # the first rule that fails counts
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("layout", MAKERS)
def test_each_rule_drops_its_rows_in_both_layouts(layout: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", [MAKERS[layout](**fields) for fields, _ in BOUNDARIES])
    counts = write_openthoughts(source, tmp_path / "out.jsonl", 8000, 0)
    expected = {"read": 12, "passed": 4, "kept": 4, TEXTS: 2, BOXED: 2, PROBLEM: 2, REASONING: 1, ONE: 1}
    assert dict(counts) == expected
    kept = {f"openthoughts-{number}" for number, (_, rule) in enumerate(BOUNDARIES) if rule is None}
    assert {row["prompt_id"] for row in read(tmp_path / "out.jsonl")} == kept
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["in.parquet", "out.jsonl"]


@pytest.mark.parametrize(("fields", "rule"), BOUNDARIES)
def test_the_rule_that_is_named_is_the_first_that_fails(fields: dict[str, str], rule: str | None) -> None:
    example = Example(
        fields.get("problem", "p"), fields.get("reasoning", "r"), last_boxed(fields.get("solution", r"\boxed{1}")) or ""
    )
    assert failed_rule(example) == rule


@pytest.mark.parametrize("layout", MAKERS)
def test_a_row_says_what_the_dataset_says(layout: str, tmp_path: Path) -> None:
    row = MAKERS[layout]("What is ½ of 3?", "Half of three…", r"\boxed{1} or rather \boxed{\frac{3}{2}}")
    write_openthoughts(write(tmp_path / "in.parquet", [row]), tmp_path / "out.jsonl", 8000, 0)
    assert read(tmp_path / "out.jsonl") == [
        {
            "prompt_id": "openthoughts-0",
            "question": "What is ½ of 3?",
            "solution": "Half of three…",
            "answer": r"\frac{3}{2}",
        }
    ]


@pytest.mark.parametrize(("ground_truth", "answer"), [(r"\boxed{4}", "4"), ("four", "5"), (None, "5")])
def test_the_ground_truth_is_the_reference_where_it_boxes_an_answer(
    ground_truth: str | None, answer: str, tmp_path: Path
) -> None:
    rows = [
        metadata_row(solution=r"\boxed{5}") | {"ground_truth_solution": ground_truth},
        metadata_row(),  # so that the column is text, not null
    ]
    write_openthoughts(write(tmp_path / "in.parquet", rows), tmp_path / "out.jsonl", 8000, 0)
    assert {row["prompt_id"]: row["answer"] for row in read(tmp_path / "out.jsonl")}["openthoughts-0"] == answer


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{7}", "7"),
        (r"\boxed{1} then \boxed{2}.", "2"),
        (r"$\boxed{\frac{a}{\sqrt{b}}}$ where {c}", r"\frac{a}{\sqrt{b}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\}}", r"\}"),
        (r"\boxed {3}", "3"),
        (r"\boxed{1} then \boxed{2", ""),  # the last does not close
        (r"\boxed{}", ""),
        ("7", ""),
        ("", ""),
    ],
)
def test_the_last_boxed_content_is_found_through_nested_braces(text: str, content: str) -> None:
    assert (last_boxed(text) or "") == content


ONE_EXPRESSION = (
    "42", "-3", "1.5", "1,000", r"\frac{1}{2}", r"-\frac12", "3/4", r"2\sqrt{3}", r"\pi", r"x^2+1", "x = 5", r"50\%",
    r"30^\circ", r"5\text{ cm}", "2^{10}", "n!", r"\$5",
)  # fmt: skip
OTHERS = (
    "", "1, 2", r"\{1, 2\}", "(1, 2)", "[0, 1]", r"\pm 2", "x > 3", r"1 \text{ or } 2", "x=1, y=2", "A", "(C)",
    r"\text{even}", r"\textbf{(B)}", "yes", r"\begin{pmatrix}1\\2\end{pmatrix}", r"\frac{2}", "x^2 + 1 = 0",
    r"\frac{1}{0}", "1" + "+1" * 130,
)  # fmt: skip


@pytest.mark.parametrize("answer", ONE_EXPRESSION)
def test_a_number_a_fraction_or_an_expression_is_kept(answer: str) -> None:
    assert is_single_expression(answer)


@pytest.mark.parametrize("answer", OTHERS)
def test_anything_else_is_dropped(answer: str) -> None:
    assert not is_single_expression(answer)


def test_an_answer_as_long_as_allowed_is_still_parsed() -> None:
    assert is_single_expression("1" * MAX_CHARS) and not is_single_expression("1" * (MAX_CHARS + 1))


def test_the_seed_alone_decides_which_rows_are_first() -> None:
    examples = [Example(f"p{number}", "r", "1") for number in range(100)]
    ids = {
        (seed, limit): [row["prompt_id"] for row in select(examples, limit, seed)[0]]
        for seed in (0, 1)
        for limit in (10, 100)
    }
    assert ids[0, 100][:10] == ids[0, 10] == [row["prompt_id"] for row in select(iter(examples), 10, 0)[0]]
    assert sorted(ids[0, 100]) == sorted(ids[1, 100]) and ids[0, 100] != ids[1, 100]
    assert len(set(ids[0, 100])) == 100 and ids[0, 100] != [f"openthoughts-{number}" for number in range(100)]


def test_every_row_is_about_as_likely_to_be_kept() -> None:
    examples = [Example(f"p{number}", "r", "1") for number in range(10)]
    kept = [row["question"] for seed in range(400) for row in select(examples, 3, seed)[0]]
    assert all(85 <= kept.count(f"p{number}") <= 155 for number in range(10))  # 120 expected, deviation 9


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "b.parquet", [default_row("third")])
    write(folder / "a.parquet", [metadata_row("first"), metadata_row("second")])
    counts = write_openthoughts(folder, tmp_path / "out.jsonl", 8000, 0)
    assert (counts["read"], counts["kept"]) == (3, 3)
    questions = {row["prompt_id"]: row["question"] for row in read(tmp_path / "out.jsonl")}
    assert questions == {"openthoughts-0": "first", "openthoughts-1": "second", "openthoughts-2": "third"}


def test_more_rows_than_a_batch_are_all_read(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", [metadata_row(f"p{number}") for number in range(600)])
    counts = write_openthoughts(source, tmp_path / "out.jsonl", 100, 0)
    assert (counts["read"], counts["passed"], counts["kept"]) == (600, 600, 100)
    assert len({row["question"] for row in read(tmp_path / "out.jsonl")}) == 100


def test_the_command_prints_the_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.parquet", [metadata_row(**fields) for fields, _ in BOUNDARIES])
    assert main(["data", "openthoughts", str(source), str(tmp_path / "out.jsonl"), "--limit", "3", "--seed", "7"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["12", "read"],
        ["-2", f"not: {TEXTS}"],
        ["-2", f"not: {BOXED}"],
        ["-2", f"not: {PROBLEM}"],
        ["-1", f"not: {REASONING}"],
        ["-1", f"not: {ONE}"],
        ["4", "passed"],
        ["3", f"kept in {tmp_path / 'out.jsonl'}"],
    ]


def _no_columns(folder: Path) -> list[str]:
    return [str(write(folder / "in.parquet", [{"problem": "p", "answer": 1}]))]


def _other_turns(folder: Path) -> list[str]:
    return [str(write(folder / "in.parquet", [{"conversations": [{"role": "user", "content": "p"}]}]))]


def _not_parquet(folder: Path) -> list[str]:
    (folder / "in.parquet").write_text("problem,answer\n")
    return [str(folder / "in.parquet")]


def _damaged(folder: Path) -> list[str]:
    """A page's header."""
    path = write(folder / "in.parquet", [metadata_row()] * 100)
    content = bytearray(path.read_bytes())
    content[10] ^= 0xFF
    path.write_bytes(content)
    return [str(path)]


def _missing(folder: Path) -> list[str]:
    return [str(folder / "in.parquet")]


def _limit_0(folder: Path) -> list[str]:
    return [str(write(folder / "in.parquet", [metadata_row()])), "--limit", "0"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (_no_columns, ("in.parquet: found the columns problem (string), answer (int64), expected problem, deepseek_",)),
        (_other_turns, ("found the columns conversations (list<", "or conversations (default)")),
        (_not_parquet, ("in.parquet: found no parquet (",)),
        (_damaged, ("in.parquet: found rows that cannot be read (",)),
        (_missing, ("in.parquet: found no parquet file, expected one or a folder of them",)),
        (_limit_0, ("--limit: found 0, expected at least 1",)),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: Any, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, *options = arguments(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["data", "openthoughts", source, str(tmp_path / "out.jsonl"), *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words), said
    assert sorted(tmp_path.iterdir()) == before


def test_a_failed_run_leaves_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old\n")
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.parquet", [metadata_row()])
    write(folder / "b.parquet", [{"other": 1}])
    with pytest.raises(ValueError, match=r"b\.parquet: found the columns other"):
        write_openthoughts(folder, out, 8000, 0)
    assert out.read_text() == "old\n"


def test_the_text_names_every_rule(tmp_path: Path) -> None:
    _, counts = select([Example("p", "r", "1")], 1, 0)
    assert all(rule in to_text(counts, tmp_path) for rule in RULES)
