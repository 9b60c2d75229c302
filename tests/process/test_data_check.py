"""`edge-opd data check`: what it prints of a file, and that every row at fault is a line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cluster import forks
from cluster.__main__ import main
from cluster.commands.data_check import SHOWN_FAULTS
from cluster.config import Recipe
from cluster.requests import renderer_of
from tests import templates as kinds
from tests.unit.test_requests_of_a_recipe import folder_of

ROWS = [{"question": f"Who keeps key {n}?", "context": f"Ada keeps key {n}.", "source": "a book"} for n in range(9)]
PROBES = [
    {"question": "Key 1 is whose?", "answer": "Ada", "tags": ["fact", "key"]},
    {"question": "2 + 2?", "answer": 4, "tags": "near"},
]
TWICE = '{"question": "Who keeps key 3?", "context": "Ada does.", "context": "Bo does."}'


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_it_says_what_each_file_becomes(
    tmp_path: Path, default_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {"messages": [{"role": "user", "content": "Who?"}], "context": "Ada keeps it.\n" * 200, "answer": "Ada"}
    rows, probe = write(tmp_path / "rows.jsonl", [*ROWS, long]), write(tmp_path / "probe.jsonl", PROBES)
    assert main(["data", "check", rows, "--probe", probe]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    renderer = renderer_of(Recipe(), str(default_model))
    tokens = len(renderer.context_prompt_ids((("user", "Who?"),), long["context"].strip()))
    for text in (
        f"{rows}: 10 rows, read as question",
        "  not read: source",
        "  10 prompts, 0 rows at fault",
        "  contexts: 10 different; 0 rows without",
        "  answers by judge: none (9 rows), text (1 rows)",
        "  1 do not fit: more than 472 tokens (student.window and teacher.window = 512 less "
        f"rollout.max_response_tokens = 40): {rows}, line 10 ({tokens})\n",
        f"  first: {rows}, line 1\n    user: Who keeps key 0?\n    context: Ada keeps key 0.\n",
        f"{probe}: 2 rows, read as question",
        "  tags: fact (1 rows), key (1 rows), near (1 rows)",
        "  0 do not fit: more than 511 tokens (student.window = 512 less 1)\n",
        "    user: Key 1 is whose?\n    answer (text): Ada\n",
    ):
        assert text in said.out, text
    x, with_r = (
        re.search(rf"^ +{view} +(\d+) +(\d+) +(\d+)$", said.out, re.MULTILINE)
        for view in ("without context", "with context")
    )
    assert x and with_r and int(with_r[3]) == tokens
    assert abs(int(x[1]) - len(renderer.prompt_ids((("user", ROWS[0]["question"]),)))) <= 2


def test_a_main_rate_without_a_question_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, probe = write(tmp_path / "rows.jsonl", ROWS), write(tmp_path / "probe.jsonl", PROBES)
    assert main(["data", "check", rows, "--probe", probe, "--set", "task.main_tag=key"]) == 0
    assert main(["data", "check", rows, "--probe", probe, "--set", "task.main_tag=fcat"]) == 2
    said = f"edge-opd: task.main_tag: found 'fcat', expected a tag of {probe}: fact, key, near\n"
    assert capsys.readouterr().err == said


def test_rows_at_fault_are_told_before_a_main_rate_that_they_leave_without_a_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tag may be that of the rows at fault."""
    rows = write(tmp_path / "rows.jsonl", ROWS)
    probe = write(tmp_path / "probe.jsonl", [PROBES[1], {"question": None, "answer": "Ada", "tags": ["key"]}])
    assert main(["data", "check", rows, "--probe", probe, "--set", "task.main_tag=key"]) == 2
    said = capsys.readouterr()
    fault = f"edge-opd: {probe}, line 2: found question = None, expected a text that is not blank"
    assert said.err.startswith(fault) and said.err.count("\n") == 1
    assert "  1 prompts, 1 rows at fault" in said.out


def test_a_row_is_shown_by_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write(tmp_path / "rows.jsonl", ["", "{oops", *ROWS])
    assert main(["data", "check", rows, "--row", "5"]) == 2
    shown = f"  shown: {rows}, line 5\n    user: Who keeps key 2?\n    context: Ada keeps key 2.\n"
    assert shown in capsys.readouterr().out
    for row in ("1", "2", "50"):
        assert main(["data", "check", rows, "--row", row]) == 2
        said = f"edge-opd: --row: found {row}, expected the number of a row of {rows} that is a prompt\n"
        assert capsys.readouterr().err == said


def test_what_the_template_says_and_makes_of_r_is_said(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    opens = kinds.SWITCHED.replace(
        "{% for", "{% if messages[0]['role'] != 'system' %}I am Tern here. {% endif %}{% for", 1
    )
    model = folder_of(tokenizer, tmp_path / "model", opens)
    assert main(["data", "check", write(tmp_path / "rows.jsonl", ROWS), "--set", f"model.path={model}"]) == 0
    said = capsys.readouterr().out
    replaced = (
        r"^  in 9 of 9 prompts with a context, .*the context.* stands in the place of .*I am Tern here\..*, a text of"
    )
    assert re.search(f"{replaced} the chat template itself$", said, re.MULTILINE) and said.count("I am Tern here.") == 1
    assert "  a prompt ends inside a thinking block (<think>): the " in said


def test_what_is_said_of_the_template_is_what_the_start_of_a_run_says(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of prompts that have a system message not what it says without one; what no row takes, and a doubled start."""
    model = folder_of(tokenizer, tmp_path / "model", kinds.DEFAULT_TEXT)
    led = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]}
    settings = [f"model.path={model}", "rollout.context_position=user", "task.context=Use this:"]
    given = [text for setting in settings for text in ("--set", setting)]
    idle = "  task.context: no row takes it, each has its own; with {context} in it, it is the frame around each\n"
    for rows, says in (([led], False), ([led, led | {"messages": led["messages"][1:]}], True)):
        path = write(tmp_path / "rows.jsonl", [row | {"context": "Ada."} for row in rows])
        assert main(["data", "check", path, *given]) == 0
        said = capsys.readouterr().out
        assert ("the chat template adds a text of its own, with the context and without it: 'I am Tern" in said) == says
        assert idle in said
    assert main(["data", "check", write(tmp_path / "rows.jsonl", [led]), *given]) == 0
    assert idle not in capsys.readouterr().out
    double = folder_of(tokenizer, tmp_path / "double", "{{ bos_token }}" + kinds.PLAIN)  # a turn begins with it too
    assert main(["data", "check", write(tmp_path / "rows.jsonl", ROWS), "--set", f"model.path={double}"]) == 0
    assert "twice where a prompt begins, expected once\n" in capsys.readouterr().out


def test_every_row_at_fault_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write(tmp_path / "rows.jsonl", [ROWS[0], {"question": None}, "{oops", ROWS[1] | {"context": ""}, TWICE])
    repeated = {"question": "who keeps KEY 0", "answer": "Ada"}
    probe = write(tmp_path / "probe.jsonl", [*PROBES, repeated, PROBES[0]])
    assert main(["data", "check", rows, "--probe", probe]) == 2
    said = capsys.readouterr()
    assert "  1 prompts, 4 rows at fault" in said.out and "  2 prompts, 2 rows at fault" in said.out
    assert [line.partition(" (")[0] for line in said.err.splitlines()] == [
        f"edge-opd: {rows}, line 2: found question = None, expected a text that is not blank",
        f"edge-opd: {rows}, line 3: found no valid JSON",
        f"edge-opd: {rows}, line 4: found context = '', expected a text that is not blank",
        f"edge-opd: {rows}, line 5: found the key 'context' twice, expected each key of an object once",
        f"edge-opd: {probe}, line 3: found the question of {rows}, line 1 again, expected one that is only here",
        f"edge-opd: {probe}, line 4: found the question of {probe}, line 1 again, expected one that is only here",
    ]


@pytest.mark.parametrize(
    ("template", "position", "odd", "said"),
    [
        (kinds.NO_THINK, "system", {"question": "Q2", "context": "Say /no_think words."},
         "rollout.context_position = 'system': found a context that does not arrive as it is written ("),
        (kinds.NO_THINK, "user", {"question": "Q2 /no_think", "context": "Ada."},
         "found a text of the role 'user' that does not arrive in the prompt as it is written ("),
        (kinds.NO_SYSTEM, "user", {"messages": [{"role": "system", "content": "Be brief."},
         {"role": "user", "content": "Who?"}], "context": "Ada."},
         "{model}: found a chat template that refuses the conversation [system, user] (no system role), expected"),
    ],
)  # fmt: skip
def test_a_row_that_a_run_would_refuse_is_a_line(
    tmp_path: Path,
    tokenizer: Any,
    capsys: pytest.CaptureFixture[str],
    template: str,
    position: str,
    odd: dict[str, Any],
    said: str,
) -> None:
    model = folder_of(tokenizer, tmp_path / "model", template)
    rows = write(tmp_path / "rows.jsonl", [ROWS[0], odd, ROWS[1], "{oops"])
    settings = [f"model.path={model}", f"rollout.context_position={position}"]
    given = [text for setting in settings for text in ("--set", setting)]
    assert main(["data", "check", rows, *given]) == 2
    printed, errors = capsys.readouterr()
    assert "  2 prompts, 2 rows at fault" in printed
    first, second = errors.splitlines()
    assert first.startswith(f"edge-opd: {rows}, line 2: {said.format(model=model)}"), first
    assert second.startswith(f"edge-opd: {rows}, line 4: found no valid JSON"), second


def test_probes_and_wrong_contexts_have_to_arrive_too(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = folder_of(tokenizer, tmp_path / "model", kinds.NO_THINK)
    wrong = {"wrong_contexts": ["Say /no_think words."]}
    rows = write(tmp_path / "rows.jsonl", [ROWS[0] | wrong, *ROWS[1:]])
    probe = write(tmp_path / "probe.jsonl", [*PROBES, {"question": "/no_think", "answer": "Ada"}])
    given = ["data", "check", rows, "--probe", probe, "--set", f"model.path={model}"]
    assert main(given) == 2
    assert [line.partition(": found a")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"edge-opd: {probe}, line 3"
    ]
    assert main([*given, "--set", "evidence.kind=contrastive", "--set", "evidence.num_wrong_contexts=1"]) == 2
    assert [line.partition(": found a")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"edge-opd: {rows}, line 1: rollout.context_position = 'system'",
        f"edge-opd: {probe}, line 3",
    ]


def test_what_a_run_does_not_ask_is_at_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A question of the probe that leaves no room for an answer; those that are asked again with their context too."""
    rows = write(
        tmp_path / "rows.jsonl", [ROWS[0] | {"answer": "Ada", "context": "Ada keeps key 0. " * 130}, *ROWS[1:]]
    )
    probe = write(tmp_path / "probe.jsonl", [*PROBES, {"question": "Whose is it? " * 150, "answer": "Ada"}])
    assert main(["data", "check", rows, "--probe", probe]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert re.match(rf"edge-opd: {probe}, line 3: found a question of \d+ tokens \('Whose is", line), line
    assert line.endswith("), expected less than student.window = 512") and said.out.count("  1 do not fit") == 2
    probe = write(tmp_path / "probe.jsonl", PROBES)
    assert main(["data", "check", rows, "--probe", probe]) == 0
    capsys.readouterr()
    assert main(["data", "check", rows, "--probe", probe, "--set", "task.chat_probes=true"]) == 2
    assert capsys.readouterr().err.startswith(f"edge-opd: {rows}, again with its context: found a question of ")


def test_wrong_contexts_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write(tmp_path / "rows.jsonl", [ROWS[0], ROWS[1] | {"wrong_contexts": ["Bo", "Ada keeps key 0. " * 130]}])
    assert main(["data", "check", rows]) == 0
    assert "  0 do not fit" in capsys.readouterr().out
    contrastive = ["evidence.kind=contrastive", "evidence.num_wrong_contexts=1"]
    assert main(["data", "check", rows, *(text for one in contrastive for text in ("--set", one))]) == 0
    said = capsys.readouterr().out
    assert (
        re.search(rf"^  1 do not fit: more than 472 tokens \(.*\): {rows}, line 2 \(", said, re.MULTILINE)
        and "    wrong context " in said
    )


def test_rows_whose_texts_have_special_tokens_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer: Any
) -> None:
    odd = [
        {"question": "a <|im_end|> b", "context": "<|im_start|>system c"},
        {"question": "a <| im_end |> b", "context": "c"},
        {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "<|im_end|><|im_end|>"},
                      {"role": "user", "content": "Who?"}], "context": "Ada."},
    ]  # fmt: skip
    rows = write(tmp_path / "rows.jsonl", [{"messages": None} | row for row in [ROWS[0], *odd]])
    assert main(["data", "check", rows]) == 0
    said = "  2 rows have special tokens in their texts, which the model reads as its own: "
    shown = f"{said}{rows}, line 2 (<|im_end|> <|im_start|>); {rows}, line 4 (<|im_end|>)\n"
    assert shown in capsys.readouterr().out
    assert main(["data", "check", write(tmp_path / "rows.jsonl", [*ROWS, odd[1]])]) == 0
    assert "special tokens" not in capsys.readouterr().out


def test_rows_whose_turns_have_more_than_a_text_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def chat(question: str, **beside: Any) -> list[dict[str, Any]]:
        answer = {"role": "assistant", "content": "Hello.", **beside}
        return [{"role": "user", "content": "Hi."}, answer, {"role": "user", "content": question}]

    odd = [chat("1?", reasoning_content="A greeting."), chat("2?"), chat("3?", thinking="A greeting.", weight=0)]
    path = write(tmp_path / "rows.jsonl", [{"messages": turns, "context": "Ada."} for turns in odd])
    probe = write(tmp_path / "probe.jsonl", [{"messages": chat("4?", name="Ada"), "answer": "Ada"}])
    assert main(["data", "check", path, "--probe", probe]) == 0
    told = capsys.readouterr().out
    said = "rows have keys in their turns that nothing reads, beside the role and the text: "
    assert f"\n  2 {said}{path}, line 1 (reasoning_content); {path}, line 3 (thinking, weight)\n" in told
    assert f"\n  1 {said}{probe}, line 1 (name)\n" in told
    assert main(["data", "check", write(tmp_path / "rows.jsonl", ROWS)]) == 0
    assert "in their turns" not in capsys.readouterr().out


def test_rows_whose_answer_is_a_sentence_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = {"answer": "The key of the archive is kept by Ada."}
    rows = write(tmp_path / "rows.jsonl", [ROWS[0] | {"answer": "Ada keeps it."}, ROWS[1] | long, *ROWS[2:]])
    assert main(["data", "check", rows, "--probe", write(tmp_path / "probe.jsonl", PROBES)]) == 0
    said = "  1 rows have an answer of more than 8 words, which is right only where it is said word for word: "
    assert capsys.readouterr().out.count(f"{said}{rows}, line 2 (The key of the ...)\n") == 1


def test_several_wordings_of_a_context_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A list of passages looks the same, of which each group of rollouts would see one."""
    rows = write(tmp_path / "rows.jsonl", [ROWS[0] | {"context": ["Ada.", "She has it."]}, *ROWS[1:]])
    assert main(["data", "check", rows]) == 0
    said = capsys.readouterr().out
    assert "\n  contexts: 10 different; 0 rows without; 1 with several, of which each group of rollouts draws" in said
    assert said.endswith("    context: Ada.\n    context: She has it.\n")
    assert main(["data", "check", write(tmp_path / "rows.jsonl", ROWS)]) == 0
    assert "with several" not in capsys.readouterr().out


def test_nothing_of_a_row_moves_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    title = "\x1b]0;mine\x07"
    good, bad = ROWS[0] | {"question": f"Who {title}?"}, {"question": None, "prompt_id": title, title: 1}
    assert main(["data", "check", write(tmp_path / "rows.jsonl", [good, bad])]) == 2
    said = capsys.readouterr()
    assert "Who  ]0;mine ?" in said.out and not {"\x1b", "\x07"} & {*said.out, *said.err}


def test_many_faults_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write(tmp_path / "rows.jsonl", [ROWS[0], *({"question": 1} for _ in range(SHOWN_FAULTS + 3))])
    assert main(["data", "check", rows]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == SHOWN_FAULTS + 1 and lines[-1] == "edge-opd: and 3 more rows at fault"


def test_rows_looked_at_in_several_processes_are_told_as_in_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    special = {"question": "Who <|im_end|> keeps it?", "context": "Ada keeps it."}
    own = {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Who?"}]}
    odd = [special, "{", own | {"context": "Bo keeps it."}, special, {"question": "Who keeps key 10?"}]
    rows = write(tmp_path / "rows.jsonl", [*ROWS, *odd, ROWS[0]])
    monkeypatch.setattr(forks, "num_cores", lambda: 3)
    told = []
    for many in (100, 2):
        monkeypatch.setattr(forks, "MANY", many)
        assert main(["data", "check", rows]) == 2
        told.append(capsys.readouterr())
    assert told[0] == told[1]
    assert "line 11:" in told[0].err and "2 rows have special tokens" in told[0].out


def test_a_recipe_gives_columns_windows_and_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"ask": "Who?", "doc": "Ada."}] * 5)
    probe = write(tmp_path / "probe.jsonl", [{"ask": "Whose?", "answer": "Ada"}])
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        f'[task]\nname = "context"\nprobe_file = "{probe}"\n[task.columns]\nquestion = "ask"\ncontext = "doc"\n'
        "[student]\nwindow = 60\n"
    )
    assert main(["data", "check", rows, "--recipe", str(recipe), "--set", "rollout.max_response_tokens=50"]) == 2
    said, errors = capsys.readouterr()
    room, places = (
        "student.window = 60 less rollout.max_response_tokens = 50",
        (f"{rows}, line {n} (#)" for n in (1, 2, 3)),
    )
    assert re.sub(r"\(\d+\)", "(#)", errors) == (
        f"edge-opd: {rows}: found 5 prompts of more than 10 tokens: {'; '.join(places)} and 2 more, "
        f"expected one that fits {room}\n"
    )
    assert "rows.jsonl: 5 rows, read as task.columns" in said and "probe.jsonl: 1 rows, read as task.columns" in said
    assert f"  5 do not fit: more than 10 tokens ({room}): {rows}, line 1 (" in said


def test_a_column_that_neither_file_has_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, probe = write(tmp_path / "rows.jsonl", ROWS), write(tmp_path / "probe.jsonl", PROBES)
    recipe = tmp_path / "own.toml"
    recipe.write_text('[task]\nname = "context"\n[task.columns]\ntags = "kinds"\n')
    assert main(["data", "check", rows, "--probe", probe, "--recipe", str(recipe)]) == 2
    line = f"edge-opd: task.columns.tags: found 'kinds', expected a column of {rows} or {probe}\n"
    assert capsys.readouterr().err == line
    assert main(["data", "check", rows, "--recipe", str(recipe)]) == 0


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", [], "rows.jsonl: found no rows, expected at least one"),
        ('{"ask": "Who?"}\n', [], "rows.jsonl: found the columns ask, expected messages or question or prompt and"),
        (json.dumps(ROWS[0]), ["--set", "task.judge=exact"], "--set: task.judge: found 'exact', expected one of"),
        (json.dumps(ROWS[0]), ["--probe", "no.jsonl"], "task.probe_file: found no file at"),
        (
            json.dumps(ROWS[0]),
            ["--set", "evidence.kind=contrastive"],
            "evidence.num_wrong_contexts: prompt rows-1: found 0 of them, expected at least",
        ),
        (
            json.dumps(ROWS[0]),
            ["--set", "student.window=20"],
            "rollout.max_response_tokens: found 40, expected less than student.window = 20, which holds the prompt too",
        ),
    ],
)
def test_a_fault_of_the_whole_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, options: list[str], message: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    assert main(["data", "check", str(tmp_path / "rows.jsonl"), *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said, said
