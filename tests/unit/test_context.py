"""The context task: what each layout of rows becomes, how answers are judged, and what is refused, by file and row."""

import json
import os
import re
import threading
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.config import load_recipe
from evidence.rule import EvidenceConfig
from rollout.config import RolloutConfig
from rollout.contrast import check_wrong_contexts
from rollout.gap import gap_questions
from rollout.probe import Rate, summarise
from rollout.render import Renderer
from rollout.requests import StepRequests
from rollout.tasks import TaskConfig, TaskPrompt, build_task
from rollout.tasks.config import Columns
from rollout.tasks.judges import JUDGES
from rollout.tasks.layouts import ANSWER
from rollout.tasks.notes import row_notes, special_notes
from rollout.tasks.openthoughts import INSTRUCTION
from rollout.tasks.placed import FIRST_ROWS, columns_of
from rollout.tasks.problems import CONTEXT, QUESTION
from tests.runs import ROOT

USER = {"role": "user", "content": "Who keeps the key?"}
ASSISTANT = {"role": "assistant", "content": "Ada does."}
TOOL = {"role": "tool", "content": "4"}
SYSTEM = {"role": "system", "content": "Be brief."}
ROW = {"question": "Who keeps the key?", "context": "Ada keeps the key."}
PROBE = {"question": "The key is kept by whom?", "answer": "Ada"}


def write(path: Path, rows: list[Any]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return str(path)


def task_of(
    tmp_path: Path, rows: list[Any], probes: list[Any] | None = None, name: str = "rows.jsonl", **keys: Any
) -> Any:
    probe_file = write(tmp_path / "probe.jsonl", probes or [PROBE])
    config = TaskConfig(name="context", prompts_file=write(tmp_path / name, rows), probe_file=probe_file, **keys)
    return build_task(config)


def prompt_of(tmp_path: Path, row: dict[str, Any], name: str = "rows.jsonl", **keys: Any) -> TaskPrompt:
    (prompt,) = task_of(tmp_path, [row], name=name, **keys).training_prompts()
    assert isinstance(prompt, TaskPrompt)
    return prompt


# layouts


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_row_has_its_own_conversation_context_and_answer(tmp_path: Path, name: str) -> None:
    row = {"messages": [SYSTEM, {"role": "user", "content": "Hi"}, ASSISTANT, USER], "context": " Ada keeps it. "}
    prompt = prompt_of(tmp_path, row | {"answer": "Ada", "prompt_id": "k", "wrong_contexts": ["Bo keeps it."]}, name)
    assert prompt.before == (("system", "Be brief."), ("user", "Hi"), ("assistant", "Ada does."))
    assert (prompt.prompt_id, prompt.question, prompt.context) == ("k", "Who keeps the key?", "Ada keeps it.")
    assert (prompt.judge, prompt.answer, prompt.wrong_contexts) == ("text", "Ada", ("Bo keeps it.",))
    assert prompt.turns == (*prompt.before, ("user", prompt.question))


THOUGHT = "<|begin_of_thought|>2 and 2.<|end_of_thought|><|begin_of_solution|>So \\boxed{4}<|end_of_solution|>"
LAYOUTS: list[tuple[str, dict[str, Any], tuple[str, str, str | None]]] = [
    ("question, answer, context", ROW | {"answer": "Ada"}, ("Who keeps the key?", "Ada keeps the key.", "Ada")),
    (
        "prompt and completion",
        {"prompt": "Who keeps the key?", "completion": "Ada does."},
        ("Who keeps the key?", ANSWER.format(context="Ada does."), None),
    ),
    (
        "prompt and completion as turns",
        {"prompt": [USER], "completion": [ASSISTANT]},
        ("Who keeps the key?", ANSWER.format(context="Ada does."), None),
    ),
    ("prompt and context", {"prompt": "Who?", "context": "Ada."}, ("Who?", "Ada.", None)),
    ("messages", {"messages": [USER], "context": "Ada."}, ("Who keeps the key?", "Ada.", None)),
    (
        "OpenThoughts, metadata",
        {
            "problem": "2 + 2?",
            "deepseek_reasoning": "2 and 2.",
            "deepseek_solution": "So \\boxed{4}",
            "ground_truth_solution": None,
            "domain": "math",
        },
        (QUESTION.format(question="2 + 2?"), CONTEXT.format(solution="2 and 2."), "4"),
    ),
    (
        "OpenThoughts, default",
        {
            "system": "Think.",
            "conversations": [
                {"from": "user", "value": f"{INSTRUCTION} 2 + 2?"},
                {"from": "assistant", "value": THOUGHT},
            ],
        },
        (QUESTION.format(question="2 + 2?"), CONTEXT.format(solution="2 and 2."), "4"),
    ),
    (
        "OpenThoughts, default, with ShareGPT's names",
        {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": THOUGHT}]},
        (QUESTION.format(question="2 + 2?"), CONTEXT.format(solution="2 and 2."), "4"),
    ),
]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
@pytest.mark.parametrize(("row", "expected"), [case[1:] for case in LAYOUTS], ids=[case[0] for case in LAYOUTS])
def test_the_usual_layouts_load_as_they_are(
    tmp_path: Path, name: str, row: dict[str, Any], expected: tuple[str, str, str | None]
) -> None:
    prompt = prompt_of(tmp_path, row, name)
    assert (prompt.question, prompt.context, prompt.answer) == expected
    assert prompt.before == ()


def test_columns_of_other_names_are_mapped(tmp_path: Path) -> None:
    columns = Columns(question="ask", context="doc", answer="gold", tags="kind", prompt_id="key")
    row = {"ask": "Who?", "doc": "Ada.", "gold": 3, "key": 7, "question": "not this"}
    task = task_of(tmp_path, [row], [{"ask": "Whose?", "gold": "Ada", "kind": "near"}], columns=columns)
    (prompt,) = task.training_prompts()
    assert (prompt.prompt_id, prompt.question, prompt.context, prompt.answer) == ("7", "Who?", "Ada.", "3")
    assert task.probe_prompts()[0].tags == ("near",)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_column_is_renamed_within_a_known_layout_and_in_one_file_of_two(tmp_path: Path, name: str) -> None:
    row = {"prompt": "Who?", "completion": "Ada does.", "gold": "Ada", "answer": "not this"}
    prompt = prompt_of(tmp_path, row, name, columns=Columns(answer="gold"))
    framed = ANSWER.format(context="Ada does.")
    assert (prompt.question, prompt.context, prompt.answer) == ("Who?", framed, "Ada")
    columns = Columns(question="instruction", answer="gold")
    task = task_of(tmp_path, [{"instruction": "Who?", "context": "Ada.", "gold": "Bo"}], [PROBE], name, columns=columns)
    assert [one.answer for one in (*task.training, *task.probes)] == ["Bo", "Ada"]
    task = task_of(tmp_path, [ROW], [{"prompt": "Whose?", "gold": "Ada", "kind": "near"}], name,
                   columns=Columns(tags="kind", answer="gold"))  # fmt: skip
    assert (task.probes[0].question, task.probes[0].tags) == ("Whose?", ("near",))


def test_a_completion_is_an_answer_by_whatever_mapping(tmp_path: Path) -> None:
    row = {"prompt": "Who?", "completion": "Ada does.", "doc": "Ada keeps it."}
    named = Columns(question="prompt", context="completion")
    for columns in (named, replace(named, question="question")):
        assert prompt_of(tmp_path, row, columns=columns).context == ANSWER.format(context="Ada does.")
    for columns in (replace(named, context="doc"), Columns(context="doc")):
        assert prompt_of(tmp_path, row, columns=columns).context == "Ada keeps it."


def test_other_columns_of_an_openthoughts_file_are_renamed(tmp_path: Path) -> None:
    row = dict(LAYOUTS[5][1]) | {"gold": 5, "key": "k"}
    prompt = prompt_of(tmp_path, row, columns=Columns(prompt_id="key"))
    assert (prompt.prompt_id, prompt.judge, prompt.answer) == ("k", "boxed", "4")
    assert prompt_of(tmp_path, row, columns=Columns(answer="gold")).answer == "5"


def test_asking_again_needs_a_row_with_an_answer(tmp_path: Path) -> None:
    rows = [ROW, {"question": "Whose key?", "context": "Ada has it."}]
    said = r"^task\.chat_probes: found True, expected false, or a training row with an answer, whose question is asked"
    with pytest.raises(ValueError, match=said):
        task_of(tmp_path, rows, chat_probes=True)
    assert task_of(tmp_path, [ROW | {"answer": "Ada"}, rows[1]], chat_probes=True).probes[-1].context == ROW["context"]


@pytest.mark.parametrize(
    ("context", "rows", "said"),
    [
        ("Use this:", [ROW], True),
        ("Use {contxt}", [ROW], True),
        ("Use {context}", [ROW], False),
        (" Ada. ", [ROW, {"question": "Whose?"}], False),
        ("", [ROW], False),
    ],
)
def test_a_recipes_context_that_no_row_takes_is_said(
    tmp_path: Path, context: str, rows: list[dict[str, Any]], said: bool
) -> None:
    config = replace(config_of(tmp_path, rows, [PROBE]), context=context)
    line = "task.context: no row takes it, each has its own; with {context} in it, it is the frame around each"
    assert row_notes(config, build_task(config)) == [line] * said


@pytest.mark.parametrize(
    "turns", [[USER, ASSISTANT], [{"from": "human", "value": USER["content"]}, {"from": "gpt", "value": "Ada does."}]]
)
def test_a_chat_s_last_answer_can_be_the_context(tmp_path: Path, turns: list[dict[str, str]]) -> None:
    columns = Columns(messages="chat", context="chat")
    prompt = prompt_of(tmp_path, {"chat": turns}, columns=columns)
    assert (prompt.turns, prompt.context) == ((("user", "Who keeps the key?"),), ANSWER.format(context="Ada does."))


def test_the_recipe_s_context_stands_in_or_frames(tmp_path: Path) -> None:
    assert prompt_of(tmp_path, {"question": "Who?"}, context="Ada. {x}").context == "Ada. {x}"
    assert prompt_of(tmp_path, ROW, context="Ada.").context == ROW["context"]
    framed = prompt_of(tmp_path, ROW | {"wrong_contexts": ["Bo."]}, context="Know: {context} {}")
    assert framed.context == f"Know: {ROW['context']} {{}}"
    assert framed.wrong_contexts == ("Know: Bo. {}",)


def test_a_context_may_be_a_file_beside_the_rows(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "key.txt").write_text("Ada keeps\nthe key.\n", "utf-8")
    prompt = prompt_of(tmp_path, {"question": "Who?", "context_file": "docs/key.txt"})
    assert prompt.context == "Ada keeps\nthe key."


def test_the_mark_at_the_beginning_of_a_context_file_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "key.txt").write_bytes(b"\xef\xbb\xbfAda keeps it.")
    assert prompt_of(tmp_path, {"question": "Who?", "context_file": "key.txt"}).context == "Ada keeps it."


def test_a_context_file_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key")
    with pytest.raises(ValueError, match=r"line 1: found context_file = 'key' \(no regular file\), expected a text"):
        prompt_of(tmp_path, {"question": "Who?", "context_file": "key"})


def test_a_context_file_is_beside_the_rows_or_below(tmp_path: Path) -> None:
    """Somebody else's rows do not read what is here; the hub's cache has its files as links into one folder."""
    folder, secret = tmp_path / "rows", tmp_path / "secret.txt"
    folder.mkdir()
    secret.write_text("A secret.")
    (folder / "link.txt").symlink_to(secret)
    names = [str(secret), "../secret.txt", "docs/../../secret.txt", "link.txt"]
    for name in names:
        with pytest.raises(
            ValueError, match=r"line 1: found context_file = .* \(it is elsewhere\), expected a text file"
        ):
            task_of(folder, [{"question": "Who?", "context_file": name}])
    snapshot, blobs = tmp_path / "snapshots" / "1", tmp_path / "blobs"
    for made in (snapshot / "docs", blobs):
        made.mkdir(parents=True)
    write(blobs / "a", [{"question": "Who?", "context_file": "docs/key.txt"}])
    (blobs / "b").write_text("Ada keeps it.")
    (snapshot / "rows.jsonl").symlink_to("../../blobs/a")
    (snapshot / "docs" / "key.txt").symlink_to("../../../blobs/b")
    probe = write(tmp_path / "probe.jsonl", [PROBE])
    task = build_task(TaskConfig(name="context", prompts_file=str(snapshot / "rows.jsonl"), probe_file=probe))
    assert [prompt.context for prompt in task.training_prompts()] == ["Ada keeps it."]


def test_rows_without_a_context_are_allowed_where_the_recipe_says_so(tmp_path: Path) -> None:
    rows = [ROW, {"question": "What do bees make?"}, {"question": "Why seasons?", "context": ""}]
    prompts = task_of(tmp_path, rows, context_empty_allowed=True).training_prompts()
    assert [prompt.context for prompt in prompts] == [ROW["context"], "", ""]


def test_a_row_without_an_id_has_its_place_for_one(tmp_path: Path) -> None:
    rows = ["", json.dumps(ROW), json.dumps(ROW | {"question": "Whose key?"})]
    assert [prompt.prompt_id for prompt in task_of(tmp_path, rows).training_prompts()] == ["rows-2", "rows-3"]


# judges


def test_a_search_that_takes_long_is_wrong_and_holds_up_no_other_thread(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, judge = "a" * 100_000 + "b", JUDGES["regex"]
    assert judge.accepts("a+B", text)
    turns, ends = list[float](), threading.Event()

    def count() -> None:
        while not ends.wait(0.001):
            turns.append(time.perf_counter())

    def goes_on_beside(seconds: float) -> bool:
        """Whether the other thread has a turn amid a search that takes so long."""
        monkeypatch.setattr("rollout.tasks.judges.PATTERN_S", seconds)
        begun = time.perf_counter()
        assert not judge.accepts(r"[ab](?=[ab]*\d)", text)
        said = capsys.readouterr().out
        assert said.startswith("answer: found '[ab](?=") and f"more than {seconds:g} s on 100001 charac" in said
        return any(begun + seconds / 4 < turn < begun + seconds * 3 / 4 for turn in turns)

    beside = threading.Thread(target=count)
    beside.start()
    try:
        assert any(map(goes_on_beside, (0.1, 1.0, 10.0)))  # a busy machine may have none for a while
    finally:
        ends.set()
        beside.join()


@pytest.mark.parametrize(
    ("judge", "answer", "right", "wrong"),
    [
        ("text", "Ada Lane", ["ADA  LANE.", "It is “Ada Lane”!", "ask ada-lane"], ["Ada", "Adalane", "Lane Ada", ""]),
        ("text", "東京", ["答えは東京です。"], ["京都です"]),
        ("text", "O'Hara", ["o’hara it is"], ["Ohara"]),
        # words that differ by a vowel sign or a tone
        ("text", "की", ["उस की किताब", "की।"], ["का", "कि", "क"]),
        ("text", "क", ["क", "वर्ण क है"], ["की", "क\u093c"]),
        ("text", "पिता", ["मेरे पिता।"], ["पीता"]),
        ("text", "किला", ["लाल किला"], ["कील"]),
        ("text", "ไม่", ["ฉันไม่ไป"], ["ไม้", "ไม", "ใหม่"]),
        ("text", "ไม", ["ไมล์"[:2]], ["ไม่", "ไม้"]),
        ("text", "ကို", ["ကို။"], ["က", "ကိုး"[:2]]),
        ("text", "က", ["က"], ["ကို"]),
        ("text", "rẹ\u0301", ["Rẹ\u0301!"], ["rẹ", "re\u0301", "ọ\u0300rẹ\u0301"]),
        ("text", "rẹ", ["rẹ."], ["rẹ\u0301"]),
        ("text", "葛城", ["葛\U000e0100城です", "葛城"], ["葛\u0304城"]),
        # signs that make another word or number
        ("text", "-5 degrees", ["at -5 degrees", "\u22125  Degrees."], ["5 degrees", "2-5 degrees"]),
        ("text", "5 degrees", ["2-5 degrees", "(5 degrees)"], ["-5 degrees"]),
        ("text", "C++", ["in C++.", "C++17"], ["a C program", "C#", "C+"]),
        ("text", "C", ["c.", "C -"], ["C++", "C#", "C++17"]),
        ("text", "x", ["x+2", "x - 2"], ["x2"]),
        ("regex", r"\bAda\b", ["so ada."], ["adagio"]),
        # a number of several parts is one word, and no part of it is another
        ("text", "5 m", ["It is 5 m.", "1-5 m"], ["It is 0.5 m", "3.5 m", "3,5 m", "1:5 m"]),
        ("text", "200 people", ["200 people."], ["1,200 people", "1,234,200 people"]),
        ("text", "1,200 people", ["1200 people", "1,200 people!"], ["200 people", "1.200 people", "1,2001 people"]),
        ("text", "$1,234.50", ["1234.50 dollars", "$1,234.50"], ["$1,234", "$234.50"]),
        ("text", "$5", ["$5", "5, or 6"], ["$1.5", "$5.10", "$5,10", "$15"]),
        ("text", "5%", ["5 %."], ["0.5%", ".5%"]),
        ("text", ".5 m", ["0.5 m", "It is .5 m"], ["5 m", "15.5 m", "...5 m"]),
        ("text", "-.5 m", ["-0.5 m"], ["0.5 m", "-5 m"]),
        ("text", "192.168.0.1", ["At 192.168.0.1."], ["192.168.0.1.5", "192 168 0 1", "1192.168.0.1"]),
        ("text", "version 1.2", ["Version 1.2."], ["version 1.2.3", "version 1"]),
        ("text", "2 items", ["2 items"], ["v1.2 items"]),
        ("text", "1, 2 and 3", ["1,2 and 3", "1, 2 and 3"], ["1.2 and 3", "0,1,2 and 3"]),
        ("text", "12:30", ["At 12:30."], ["12:30:15"]),
        (
            "regex",
            r"(?s)^(?!.*Ada)",
            ["Bo", "", "I do not know.\nBo."],
            ["it is Ada", "I do not know.\nMaybe Ada does."],
        ),
        ("number", ".5", ["0.5", "It is .5"], ["5", "15.5", "A.5", "...5"]),
        ("number", "1234.5", ["1,234.50", "about 1234.5 m"], ["1234", "12345", "", "1,2 34.5"]),
        ("number", "-3", ["it is -3.", "\u22123 degrees"], ["3", "10-3"]),
        (
            "number",
            "12",
            ["the 12th", "0 or 12", "_12_", "有12个", "答えは12です"],
            ["A12", "112", "12.5", "1.12", "twelve"],
        ),
        ("number", "-2024", ["是-2024"], ["2020年-2024年", "2024"]),
        ("number", "1234567890", ["1,234,567,890", "1234567890.0"], ["1234567891", "123456789"]),
        ("number", "0.3", ["0.30000000000000004", "3e-1"], ["0.3001", "1e-99999999999999999999"]),
    ],
)
def test_a_response_is_judged_by_its_answer(
    tmp_path: Path, judge: str, answer: str, right: list[str], wrong: list[str]
) -> None:
    task = task_of(tmp_path, [ROW | {"answer": {judge: answer}}], [PROBE | {"answer": {judge: answer}}])
    (prompt,), (probe,) = task.training_prompts(), task.probe_prompts()
    for text in right + wrong:
        assert task.reward(prompt, text) == float(text in right), text
        assert task.flags(probe, text) == {"correct": text in right}, text


@pytest.mark.parametrize(
    "pattern", [r"Ada(?! Lane\.)", "(?s)^(?!.*Ada)", "^(?s:(?!.*Ada))", "Ada(?![.!])", "Ada.(?!x)"]
)
def test_a_dot_that_stops_nothing_short_is_no_fault(tmp_path: Path, pattern: str) -> None:
    assert prompt_of(tmp_path, ROW | {"answer": {"regex": pattern}}).answer == pattern


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("(a" * 400 + ")" * 400, "brackets 400 deep, expected at most 50"),
        ("(?V1)" + "[" * 1000 + "a" + "]" * 1000, "nested too deep to read, expected a regular expression"),
        (r"\d{400000}", "400000 characters with its repeats written out, expected at most 200000"),
        ("(ab{999}){1000}", "1000000 characters with its repeats written out, expected at most 200000"),
        ("(?:[a-z]{700,}){600}", "421200 characters with its repeats written out, expected at most 200000"),
    ],
)
def test_a_pattern_that_is_too_large_to_read_is_one_line(tmp_path: Path, pattern: str, fault: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path))}.*, line 1: found answer = .*") as raised:
        prompt_of(tmp_path, ROW | {"answer": {"regex": pattern}})
    assert str(raised.value).endswith(f" for the judge regex ({fault})")


@pytest.mark.parametrize(
    "pattern", [r"(\d{4})-\d{2}" * 40, "(" * 50 + "a" + ")" * 50, r"\({9}[(]{9}a" * 60, "a{0,999999}b", "x{a", "a{,9}b"]
)
def test_a_pattern_of_many_small_parts_is_no_fault(tmp_path: Path, pattern: str) -> None:
    assert prompt_of(tmp_path, ROW | {"answer": {"regex": pattern}}).answer == pattern


def test_an_answer_has_the_recipe_s_judge_unless_it_names_its_own(tmp_path: Path) -> None:
    rows = [ROW | {"question": f"Q{n}", "answer": answer} for n, answer in enumerate(["a+", 4, {"text": "a"}, None])]
    prompts = task_of(tmp_path, rows, [PROBE | {"answer": "x"}], judge="regex").training_prompts()
    assert [(one.judge, one.answer) for one in prompts] == [("regex", "a+"), ("number", "4"), ("text", "a"), ("", None)]
    assert task_of(tmp_path, rows[3:]).reward(prompts[3], "anything") is None
    boxed = prompt_of(tmp_path, ROW | {"answer": 4}, judge="boxed")
    assert (boxed.judge, boxed.answer) == ("boxed", "4")


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("-5", ["It is -5.", "\u22125"], ["It is 5."]),
        ("1200", ["It is 1,200.", "1200 m"], ["12", "1,200,000", "200"]),
        ("1,200", ["1200"], ["1 200", "200"]),
        ("3.14", ["about 3.14"], ["3, 14 items", "314"]),
    ],
)
def test_a_text_that_is_one_number_is_judged_as_one(
    tmp_path: Path, answer: str, right: list[str], wrong: list[str]
) -> None:
    task = task_of(tmp_path, [ROW | {"answer": answer}])
    (prompt,) = task.training_prompts()
    assert (prompt.judge, prompt.answer) == ("number", answer)
    assert [task.reward(prompt, text) for text in right + wrong] == [1.0] * len(right) + [0.0] * len(wrong)
    for name in ("007", "2nd", "12-05", "1.2.3", "$5"):
        assert prompt_of(tmp_path, ROW | {"answer": name}).judge == "text", name
    assert prompt_of(tmp_path, ROW | {"answer": {"text": answer}}).judge == "text"
    assert prompt_of(tmp_path, ROW | {"answer": answer}, judge="regex").judge == "regex"


def test_rates_are_of_all_probes_and_of_each_tag(tmp_path: Path) -> None:
    probes = [PROBE | {"tags": ["fact", "key"]}, {"question": "Sum?", "answer": 4, "tags": "near"}]
    task = task_of(tmp_path, [ROW], probes)
    key, total = task.probe_prompts()
    result = summarise([(key, "Ada"), (key, "Bo"), (total, "5"), (total, "6")], task)
    counts = {name: (rate.k, rate.n) for name, rate in result.rates.items()}
    assert counts == {"correct": (1, 4), "correct:fact": (1, 2), "correct:key": (1, 2), "correct:near": (0, 2)}
    assert (result.questions, result.samples) == (2, 2)


def test_the_main_rate_is_of_the_questions_with_the_tag_that_the_recipe_names(tmp_path: Path) -> None:
    probes = [PROBE | {"tags": ["fact", "key"]}, {"question": "Sum?", "answer": 4, "tags": "near"}]
    task = task_of(tmp_path, [ROW], probes, main_tag="key")
    assert task.rates == ("correct:key", "correct", "correct:fact", "correct:near")
    key, total = task.probe_prompts()
    result = summarise([(key, "Ada"), (key, "Bo"), (key, "Ada"), *[(total, "5")] * 3], task)
    assert next(iter(result.rates.values())) == Rate(2, 3) and result.rates["correct"] == Rate(2, 6)
    assert (result.questions, result.samples) == (1, 3)
    (asked, context), *_ = gap_questions(
        task_of(tmp_path, [ROW | {"answer": "Ada"}, {"question": "And why?", "context": "Bo."}], probes, main_tag="key")
    )
    assert (asked.probe, asked.tags, context) == ("context", ("key",), ROW["context"])


@pytest.mark.parametrize(("tags", "found"), [(["fact", "near"], "fact, near"), ([], "its rows have none")])
def test_a_main_rate_without_a_question_is_refused(tmp_path: Path, tags: list[str], found: str) -> None:
    expected = rf"^task\.main_tag: found 'facts', expected a tag of {tmp_path}/probe\.jsonl: {found}$"
    with pytest.raises(ValueError, match=expected):
        task_of(tmp_path, [ROW], [PROBE | {"tags": tags}], main_tag="facts")


# wrong contexts


def test_wrong_contexts_are_the_row_s_own_or_other_rows(tmp_path: Path) -> None:
    rows = [{"question": f"Q{n}", "context": f"C{n}"} for n in range(6)]
    prompts = task_of(tmp_path, [*rows, rows[0] | {"question": "Q6", "wrong_contexts": ["W"]}]).training_prompts()
    assert prompts[6].wrong_contexts == ("W",)
    for prompt in prompts[:6]:
        assert len(set(prompt.wrong_contexts) - {prompt.context}) == 3
    check_wrong_contexts(prompts[:6], EvidenceConfig(kind="contrastive", num_wrong_contexts=3))
    with pytest.raises(ValueError, match=r"prompt rows-7: found 1 of them, expected at least 3 wrong contexts"):
        check_wrong_contexts(prompts, EvidenceConfig(kind="contrastive", num_wrong_contexts=3))


# bad input


def turns(*parts: Any) -> dict[str, Any]:
    return {"messages": list(parts), "context": "Ada."}


BAD: list[tuple[Any, str]] = [
    ("{oops", "found no valid JSON"),
    (
        '{"question": "Who?", "context": "Ada.", "question": "Who?"}',
        "found the key 'question' twice, expected each key of an object once",
    ),
    (
        '{"messages": [{"role": "user", "content": "Who?", "content": "Where?"}], "context": "Ada."}',
        "found the key 'content' twice, expected each key",
    ),
    ([1], "found a list, expected a JSON object"),
    (ROW | {"question": None}, "found question = None, expected a text that is not blank"),
    (ROW | {"question": "  "}, "found question = '  ', expected a text"),
    (ROW | {"question": 3}, "found question = 3, expected a text"),
    (ROW | {"context": None}, "found no context, expected context or context_file in the row, or task.context"),
    ({"question": "Who?"}, "found no context, expected"),
    (ROW | {"context": ""}, "found context = '', expected a text"),
    (ROW | {"context": ["Ada", 3]}, "found context[1] = 3, expected a text that is not blank"),
    (ROW | {"context": ["Ada", USER]}, "found context[0] = 'Ada', expected an object with role and content"),
    (ROW | {"context": [["Ada", ["She has it."]]]}, "found context[0] = ['Ada', ['She has it.']], expected a te"),
    (ROW | {"context": ["Ada", " "]}, "found context[1] = ' ', expected a text that is not blank"),
    (ROW | {"context": ["Ada", "Ada "]}, "found a text of context twice, expected wordings that differ"),
    (
        ROW | {"context": ["Ada", "Bo"], "wrong_contexts": ["Cy", "Bo"]},
        "found wrong_contexts[1] equal to the context, expected another",
    ),
    (ROW | {"context": []}, "found context = [], expected a text, or one turn of the assistant"),
    (
        ROW | {"context": [USER]},
        "found context = [{'role': 'user', 'content': 'Who keeps the key?'}], expected a text, or",
    ),
    (
        ROW | {"context": [ASSISTANT, USER, ASSISTANT]},
        "found context = [{'role': 'assistant', 'content': 'Ada does.'}, ",
    ),
    (ROW | {"context": [SYSTEM, ASSISTANT]}, "found context = [{'role': 'system', 'content': 'Be brief.'}, {'role': '"),
    (
        ROW | {"context": [{"role": "assistant", "content": None, "tool_calls": [1]}, TOOL, ASSISTANT]},
        "found a tool call in context[0], expected turns of text only",
    ),
    (ROW | {"context": [TOOL, ASSISTANT]}, "found a tool call in context[0], expected turns of text only"),
    (ROW | {"context": [ASSISTANT | {"content": " "}]}, "found context[0].content = ' ', expected a text that is not"),
    (ROW | {"context": [ASSISTANT | {"content": [{"text": "Ada"}]}]}, "found a list in context[0].content, expected a"),
    (ROW | {"context_file": "x.txt"}, "found context and context_file, expected one"),
    ({"question": "Who?", "context_file": "none.txt"}, "found context_file = 'none.txt' (No such file"),
    ({"question": "Who?", "context_file": "."}, "found context_file = '.' (Is a directory"),
    (
        {"question": "Who?", "context_file": "a\0b"},
        "found context_file = 'a\\x00b' (embedded null byte), expected a text",
    ),
    ({"question": "Who?", "context_file": "a" * 300}, f"found context_file = '{'a' * 79}... (File name too long)"),
    (ROW | {"messages": [USER]}, "found messages and question, expected one"),
    ({"context": "Ada."}, "found messages = None, expected a list of turns"),
    (turns(), "found messages = [], expected a list of turns"),
    ({"messages": "Who?", "context": "Ada."}, "found messages = 'Who?', expected a list of turns"),
    (turns("Who?"), "found messages[0] = 'Who?', expected an object with role and content"),
    (turns({"content": "Who?"}), "found messages[0] = {'content': 'Who?'}, expected an object"),
    (turns({"role": "user"}), "found messages[0].content = None, expected a text"),
    (turns({"role": "user", "content": None}), "found messages[0].content = None, expected a text"),
    (turns({"role": "user", "content": ""}), "found messages[0].content = '', expected a text"),
    (
        turns({"role": "user", "content": [{"type": "text", "text": "Who?"}]}),
        "found a list in messages[0].content, expected a text: join the texts of its parts",
    ),
    *(
        (
            turns({"role": "user", "content": [{"type": "text", "text": "Who?"}, {"type": kind} | part]}),
            f"found a part of the type '{kind}' in messages[0].content, expected turns of text only",
        )
        for kind, part in [("image", {}), ("image_url", {"text": None, "image_url": {"url": "a.png"}})]
    ),
    (turns({"role": "critic", "content": "Who?"}), "found messages[0].role = 'critic', expected system, user or"),
    (turns({"role": ["user"], "content": "Who?"}), "found messages[0].role = ['user'], expected system"),
    (turns(USER, USER), "found messages[1].role = 'user', expected the assistant's turn"),
    (turns(ASSISTANT, USER), "found messages[0].role = 'assistant', expected the user's turn or the system's"),
    (turns(USER, SYSTEM), "found messages[1].role = 'system', expected the assistant's turn"),
    (turns(SYSTEM), "found a system message alone in messages"),
    (
        {"messages": [USER, ASSISTANT]},
        "found an assistant's turn at the end of messages, expected the user's; with "
        'messages = "messages" and context = "messages" in [task.columns] that turn is the context',
    ),
    (
        turns(USER, ASSISTANT),
        "found an assistant's turn at the end of messages, expected the user's; leave it out",
    ),
    (turns(USER, ASSISTANT | {"tool_calls": [{"id": "1"}]}, USER), "found a tool call in messages[1], expected"),
    (turns(USER, {"role": "tool", "content": "4"}), "found a tool call in messages[1], expected turns of text only"),
    (ROW | {"prompt_id": "a"}, "found prompt_id 'a' of {path}, line 1 again, expected each one once"),
    (ROW | {"prompt_id": ""}, "found prompt_id = '', expected a text"),
    (ROW | {"answer": True}, "found answer = True, expected a text"),
    (ROW | {"answer": " "}, "found answer = ' ', expected a text"),
    (ROW | {"answer": "?!"}, "found answer = '?!' for the judge text (no letter and no digit in it"),
    (ROW | {"answer": float("nan")}, "found answer = 'nan' for the judge number (expected one number in digits)"),
    (ROW | {"answer": {"number": "about 3"}}, "found answer = 'about 3' for the judge number (expected one number"),
    (ROW | {"answer": {"regex": "("}}, "found answer = '(' for the judge regex ("),
    (ROW | {"answer": {"regex": "a*"}}, "found answer = 'a*' for the judge regex (it matches an empty answer"),
    (
        ROW | {"answer": {"regex": "(?!Ada)"}},
        "found answer = '(?!Ada)' for the judge regex (it matches at the end of every answer, expected ^ before (?!",
    ),
    (
        ROW | {"answer": {"regex": "(?sm)^(?!.*Ada)"}},
        "found answer = '(?sm)^(?!.*Ada)' for the judge regex (it matches at the end of every answer, expected",
    ),
    *(
        (
            ROW | {"answer": {"regex": pattern}},
            f"found answer = {pattern!r} for the judge regex (after (?! its . ends with the line, so that what is said "
            "on the next is not seen, expected (?s) at the beginning",
        )
        for pattern in ("^(?!.*Ada)", "^(?!(?:.*(?:Ada|Bo)))", "^(?![.x].+).*Bo")
    ),
    (
        ROW | {"answer": {"boxed": "the answer is 4"}},
        "found answer = 'the answer is 4' for the judge boxed (a sentence",
    ),
    (ROW | {"answer": ["Bob", "Robert"]}, "found answer = ['Bob', 'Robert'], expected one, or of several any"),
    (ROW | {"answer": {"exact": "a"}}, "found answer = {'exact': 'a'}, expected one of text, regex, number, boxed"),
    (
        ROW | {"wrong_contexts": ["Bob.", ROW["context"]]},
        "found wrong_contexts[1] equal to the context, expected another",
    ),
    (ROW | {"wrong_contexts": [None]}, "found wrong_contexts[0] = None, expected a text"),
    (ROW | {"context": "half \ud83d"}, "found half a character, '\\ud83d', at place 6 of context"),
]


@pytest.mark.parametrize(("row", "message"), BAD, ids=[message[:50] for _, message in BAD])
def test_a_bad_row_is_one_line_with_its_file_and_place(tmp_path: Path, row: Any, message: str) -> None:
    good = {"messages": [USER | {"content": "Good?"}], "context": "Ada.", "prompt_id": "a"}
    path = str(tmp_path / "rows.jsonl")
    line = re.escape(f"{path}, line 2: {message.format(path=path) if '{path}' in message else message}")
    with pytest.raises(ValueError, match=rf"^{line}") as raised:
        task_of(tmp_path, [good, json.dumps(row) if not isinstance(row, str) else row])
    assert "\n" not in str(raised.value) and len(str(raised.value).replace(str(tmp_path), "")) < 600


OWN = Columns("chat", "ask", "doc", "doc_file", "gold", "others", "kinds", "key")  # every name is the file's own
MAPPED = {"ask": "Who keeps the key?", "doc": "Ada keeps the key."}
SQUAD = {"text": ["Ada"], "answer_start": [1]}
NAMED: list[tuple[dict[str, Any], Columns, str]] = [
    ({"prompt": None, "completion": "x"}, Columns(), "found prompt = None, expected a text that is not blank"),
    ({"prompt": "Who?", "completion": None}, Columns(), "found no completion, expected completion or context_file in"),
    ({"prompt": "Who?", "completion": " "}, Columns(), "found completion = ' ', expected a text that is not blank"),
    (
        {"prompt": [USER, ASSISTANT], "completion": None},
        Columns(),
        "found an assistant's turn at the end of prompt, expected the user's; with "
        'question = "prompt" and context = "prompt" in [task.columns] that turn is the context',
    ),
    ({"prompt": [USER], "completion": [ASSISTANT, USER, ASSISTANT]}, Columns(), "found completion = [{'role': 'assis"),
    ({"prompt": [USER], "completion": [TOOL, ASSISTANT]}, Columns(), "found a tool call in completion[0], expected"),
    ({"chat": [USER]}, replace(OWN, context="chat"), "found no assistant's turn at the end of chat, expected one: the"),
    ({"conversations": [{"from": who, "value": THOUGHT} for who in ("user", "assistant", "user", "assistant")]},
     Columns(), "found no texts in conversations, expected OpenThoughts' own"),
    ({"conversations": [{"from": who, "value": THOUGHT} for who in ("system", "user", "assistant")]},
     Columns(), "found no texts in conversations, expected OpenThoughts' own"),
    ({"prompt": [ASSISTANT], "context": "x"}, Columns(), "found prompt[0].role = 'assistant', expected the user's"),
    ({"question": None, "messages": None, "context": "x"}, Columns(), "found messages = None, expected a list"),
    ({"problem": None, "deepseek_reasoning": "x", "deepseek_solution": None, "ground_truth_solution": None}, Columns(),
     "found problem = None, expected a text"),
    ({"problem": "1?", "deepseek_reasoning": None, "deepseek_solution": None, "ground_truth_solution": None}, Columns(),
     "found no deepseek_reasoning, expected deepseek_reasoning in the row, or task.context for all rows"),
    ({"conversations": [{"from": "user", "value": "1?"}, {"from": "assistant", "value": "<|begin_of_thought|>"}]},
     Columns(), "found no <|begin_of_thought|> in conversations, expected <|begin_of_thought|> in conversations in"),
    (MAPPED | {"ask": None}, OWN, "found ask = None, expected a text that is not blank"),
    (MAPPED | {"ask": [USER, USER]}, OWN, "found ask[1].role = 'user', expected the assistant's turn"),
    (MAPPED | {"chat": [USER]}, OWN, "found chat and ask, expected one of the two"),
    (MAPPED | {"doc": 3}, OWN, "found doc = 3, expected a text that is not blank"),
    (MAPPED | {"doc": None}, OWN, "found no doc, expected doc or doc_file in the row, or task.context for all rows"),
    (MAPPED | {"doc_file": "x"}, OWN, "found doc and doc_file, expected one of the two"),
    (MAPPED | {"doc": None, "doc_file": "x"}, OWN, "found doc_file = 'x' (No such file"),
    (MAPPED | {"others": [MAPPED["doc"]]}, OWN, "found others[0] equal to the context, expected another"),
    (MAPPED | {"others": [3]}, OWN, "found others[0] = 3, expected a text that is not blank"),
    (MAPPED | {"key": " "}, OWN, "found key = ' ', expected a text that is not blank"),
    (MAPPED | {"gold": ["a", "b"]}, OWN, "found gold = ['a', 'b'], expected one, or of several any of which is right"),
    (MAPPED | {"gold": SQUAD}, OWN, "found gold = {'text': ['Ada'], 'answer_start': [1]}, expected one of text,"),
    (MAPPED | {"gold": " "}, OWN, "found gold = ' ', expected a text that is not blank"),
    (MAPPED | {"gold": "?!"}, OWN, "found gold = '?!' for the judge text ("),
]  # fmt: skip


@pytest.mark.parametrize(("row", "columns", "message"), NAMED, ids=[message[:50] for *_, message in NAMED])
def test_a_message_has_the_file_s_own_names(
    tmp_path: Path, row: dict[str, Any], columns: Columns, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 1: {re.escape(message)}"):
        probe = PROBE if columns == Columns() else {"ask": "Whose?", "gold": "Ada"}
        task_of(tmp_path, [row], [probe], columns=columns)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ({"ask": "Whose?"}, "found no gold, expected one to hold"),
        ({"ask": "Whose?", "gold": "Ada", "kinds": "two words"}, "found kinds with 'two words', expected words"),
        ({"ask": "Whose?", "gold": "Ada", "kinds": [1]}, "found kinds[0] = 1, expected a text"),
    ],
)
def test_a_message_on_a_probe_has_the_file_s_own_names(tmp_path: Path, probe: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"probe\.jsonl, line 1: {re.escape(message)}"):
        task_of(tmp_path, [MAPPED], [probe], columns=OWN)


def test_a_file_of_one_layout_is_not_refused_in_the_names_of_another(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 2: found question = None, expected a text"):
        task_of(tmp_path, [ROW, {"prompt": "Who?", "context": "x"}])


@pytest.mark.parametrize(
    ("turns", "ending"),
    [
        ([USER, ASSISTANT], 'maps other names: messages = "{name}" and context = "{name}"'),
        ([{"from": "human", "value": "Q"}, {"from": "gpt", "value": "a"}],
         'maps other names: messages = "{name}" and context = "{name}"'),
        ([USER], 'maps other names: messages = "{name}"'),
        ("text", "maps other names"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["conversations", "dialogue"])
def test_a_column_of_turns_comes_with_the_lines_that_map_it(tmp_path: Path, name: str, turns: Any, ending: str) -> None:
    with pytest.raises(ValueError) as raised:
        task_of(tmp_path, [{name: turns}])
    said = str(raised.value)
    assert f"rows.jsonl: found the columns {name}, expected messages or question or prompt and completion or " in said
    assert " or conversations with <|begin_of_thought|>; [task.columns] " in said
    assert said.endswith(ending.format(name=name))
    if "context =" in ending:
        names = dict(re.findall(r'(\w+) = "(\w+)"', said))
        assert prompt_of(tmp_path, {name: turns}, columns=Columns(**names)).context


def config_of(tmp_path: Path, rows: list[Any], probes: list[Any], **keys: Any) -> TaskConfig:
    files = {
        "prompts_file": write(tmp_path / "rows.jsonl", rows),
        "probe_file": write(tmp_path / "probe.jsonl", probes),
    }
    return TaskConfig(name="context", **files, **keys)


def test_columns_that_nothing_reads_are_said(tmp_path: Path) -> None:
    row = {"prompt": "Who?", "completion": "Ada.", "context": "A secret.", "answers": ["Ada"]}
    config = config_of(tmp_path, [row, row | {"source": 1}], [PROBE | {"kind": "near"}])
    rows, probe = config.prompts_file, config.probe_file
    assert row_notes(config, build_task(config)) == [
        f"{rows}: columns that nothing reads: answers, context, source",
        f"{probe}: columns that nothing reads: kind",
    ]
    config = config_of(tmp_path, [{"question": "Who?", "contxt": "Ada."}], [PROBE], context_empty_allowed=True)
    assert row_notes(config, build_task(config)) == [f"{rows}: columns that nothing reads: contxt"]
    config = config_of(tmp_path, [ROW], [PROBE])
    assert row_notes(config, build_task(config)) == []
    config = config_of(tmp_path, [LAYOUTS[-2][1]], [PROBE])
    assert row_notes(config, build_task(config)) == [f"{config.prompts_file}: columns that nothing reads: system"]


THINKS = ASSISTANT | {"reasoning_content": "Who has it? Ada.", "name": None, "tool_calls": []}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
@pytest.mark.parametrize(
    ("row", "columns", "unread"),
    [
        ({"messages": [USER, THINKS, USER], "context": "Ada."}, Columns(), ("reasoning_content",)),
        ({"chat": [SYSTEM, USER, THINKS | {"id": 0}]}, Columns("chat", context="chat"), ("id", "reasoning_content")),
        ({"prompt": [USER], "completion": [THINKS]}, Columns(), ("reasoning_content",)),
        (
            {"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hm.", "thought": "A greeting."},
                          {"from": "human", "value": "Who?"}], "context": "Ada."},
            Columns(),
            ("thought",),
        ),
        ({"messages": [USER, ASSISTANT | {"thinking": ""}, USER], "context": ["Ada.", "She."]}, Columns(), ()),
        (ROW, Columns(), ()),
    ],
)  # fmt: skip
def test_what_a_turn_has_beside_its_text_is_said(
    tmp_path: Path, row: dict[str, Any], columns: Columns, unread: tuple[str, ...], name: str
) -> None:
    """A thought beside an answer is in no prompt, nor in a context that the answer becomes."""
    (prompt,) = task_of(tmp_path, [row], name=name, columns=columns).training
    assert prompt.unread == unread
    assert not any("Who has it?" in text or "A greeting." in text for text in prompt.texts)


def test_keys_in_turns_that_nothing_reads_are_said_of_each_file(tmp_path: Path) -> None:
    def asked(question: str, answer: dict[str, Any]) -> list[dict[str, Any]]:
        return [USER, answer, {"role": "user", "content": question}]

    rows = [
        {"messages": asked(f"{n}?", answer), "context": "Ada."}
        for n, answer in enumerate([THINKS, ASSISTANT | {"weight": 1}, ASSISTANT])
    ]
    config = config_of(tmp_path, [*rows, {"messages": [USER], "context": "Ada."}],
                       [{"messages": asked("Who?", THINKS), "answer": "Ada"}])  # fmt: skip
    said = "rows have keys in their turns that nothing reads, beside the role and the text: "
    assert row_notes(config, build_task(config)) == [
        f"{config.prompts_file}: 2 of 4 {said}reasoning_content, weight",
        f"{config.probe_file}: 1 of 1 {said}reasoning_content",
    ]
    assert repr(build_task(config).training[0]).count("reasoning") == 0, "what an older run was begun with is the same"


def test_answers_that_are_sentences_are_said_of_each_file(tmp_path: Path) -> None:
    """A right response seldom has all of their words in their order, so that the rate is low whatever was learned."""
    long = "The key of the archive is kept by Ada."  # 9 words
    rows = [ROW | {"question": f"{n}?", "answer": answer}
            for n, answer in enumerate([long, long.removesuffix(" Ada."), {"regex": long}, None])]  # fmt: skip
    config = config_of(tmp_path, rows, [PROBE, PROBE | {"question": "Whose?", "answer": {"text": long}}])
    said = "rows have an answer of more than 8 words, which is right only where it is said word for word"
    assert row_notes(config, build_task(config)) == [
        f"{config.prompts_file}: 1 of 4 {said}", f"{config.probe_file}: 1 of 2 {said}"
    ]  # fmt: skip


def test_what_is_asked_again_with_its_context_is_no_row_of_the_probes_file(tmp_path: Path, tokenizer: Any) -> None:
    long = "The key of the archive is kept by <|im_end|> Ada."
    rows = [ROW | {"question": f"{n}?", "answer": long, "context": f"{n}: {long}"} for n in range(4)]
    config = replace(config_of(tmp_path, rows, [PROBE]), chat_probes=True)
    task, tokens_in = build_task(config), Renderer(tokenizer, "system").special_tokens_in
    assert len(task.probe_prompts()) == 5
    (whole,), (special,) = row_notes(config, task), special_notes(config, task, tokens_in)
    assert whole.startswith(f"{config.prompts_file}: 4 of 4 ") and special.startswith(f"{config.prompts_file}: 4 of 4 ")


def test_special_tokens_in_rows_are_said_of_each_file(tmp_path: Path, tokenizer: Any) -> None:
    said = "rows have special tokens in their texts ({}): the model reads them as the chat template's own"
    odd = [ROW | {"question": "a <|im_end|>?"}, ROW | {"question": "b?", "context": ["c", "<|im_start|> d <|im_end|>"]}]
    config = config_of(tmp_path, [ROW, *odd, ROW | {"question": "<| im_end |>?"}], [PROBE | {"question": "<|im_end|>"}])
    tokens_in = Renderer(tokenizer, "system").special_tokens_in
    rows, probe = special_notes(config, build_task(config), tokens_in)
    assert rows.startswith(f"{config.prompts_file}: 2 of 4 {said.format('<|im_end|> <|im_start|>')}")
    assert probe.startswith(f"{config.probe_file}: 1 of 1 {said.format('<|im_end|>')}")
    assert special_notes(TaskConfig(), build_task(TaskConfig()), tokens_in) == []


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
@pytest.mark.parametrize("key", ["messages", "context_file", "answer", "wrong_contexts", "tags", "prompt_id"])
def test_a_column_that_no_row_has_is_refused(tmp_path: Path, key: str, name: str) -> None:
    """With a probe alone it may be one of the training rows."""
    columns = Columns(**{key: "misspelt"})
    if key == "answer":
        probe: dict[str, Any] = {"question": "Whose?", "misspelt": "Ada"}
        assert task_of(tmp_path, [ROW], [probe], name, columns=columns).probes[0].answer == "Ada"
        return
    message = rf"^task\.columns\.{key}: found 'misspelt', expected a column of .*{name} or .*probe\.jsonl$"
    with pytest.raises(ValueError, match=message):
        task_of(tmp_path, [ROW], [PROBE], name, columns=columns)
    config = TaskConfig(name="context", probe_file=str(tmp_path / "probe.jsonl"), columns=columns)
    assert len(build_task(config).probe_prompts()) == 1
    with pytest.raises(ValueError, match=message):
        columns_of(str(tmp_path / name), "ROWS", replace(config, prompts_file=str(tmp_path / name)))


def test_a_column_may_come_in_a_late_row(tmp_path: Path) -> None:
    rows = [ROW | {"question": f"{n}?"} for n in range(FIRST_ROWS + 9)]
    late = [*rows, ROW | {"gold": "Ada", "question": "Last?"}]
    probes = [{"messages": [USER], "gold": "Ada"}]
    assert task_of(tmp_path, late, probes, columns=Columns(answer="gold")).training[-1].answer == "Ada"
    tagged = [PROBE | {"question": f"{n}, whose?"} for n in range(FIRST_ROWS)] + [PROBE | {"kind": "near"}]
    assert task_of(tmp_path, rows, tagged, columns=Columns(tags="kind")).probes[-1].tags == ("near",)


def test_parquet_s_nulls_make_no_fraction_of_an_id_and_no_answer(tmp_path: Path) -> None:
    rows = [ROW | {"prompt_id": 7.0, "answer": {"regex": None, "number": None}},
            {"question": "Whose?", "context": "Ada.", "answer": {"regex": "Ada", "number": None}}]  # fmt: skip
    first, second = task_of(tmp_path, rows, name="rows.parquet").training
    assert (first.prompt_id, second.prompt_id) == ("7", "rows-2")
    assert (first.answer, second.judge, second.answer) == (None, "regex", "Ada")


@pytest.mark.parametrize(
    ("name", "found"),
    [("rows", "a folder at '{}', expected one file"), ("rows.jsonl.gz", "a packed file at '{}', expec")],
)
def test_what_is_no_file_of_rows_is_named_by_its_kind(tmp_path: Path, name: str, found: str) -> None:
    path = tmp_path / name
    path.mkdir() if name == "rows" else path.write_bytes(b"\x1f\x8b")
    with pytest.raises(ValueError, match=rf"^task\.prompts_file: found {found.format(path)}"):
        build_task(TaskConfig(name="context", prompts_file=str(path), probe_file=write(tmp_path / "p.jsonl", [PROBE])))


PARQUET_BAD: list[tuple[dict[str, Any], str]] = [
    (ROW | {"question": {"text": "Who?"}}, r", row 1: found question = {'text': 'Who\?'}, expected a text"),
    (ROW | {"question": b"Who?"}, r", row 1: found question = b'Who\?', expected a text"),
    ({"ask": "Who?", "context": "Ada."}, r": found the columns ask, context, expected messages or question or "),
    ({"question": "Who?"}, ", row 1: found no context, expected"),
    (turns({"role": "user", "content": None}), r", row 1: found messages\[0\].content = None, expected a text"),
]


@pytest.mark.parametrize(("row", "message"), PARQUET_BAD)
def test_parquet_with_nested_or_missing_columns_is_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"rows\.parquet{message}"):
        task_of(tmp_path, [row], name="rows.parquet")


@pytest.mark.parametrize(
    "question",
    [
        "Who keeps the key?",
        "WHO  keeps the key",
        "who keeps the key ?",
        "\uff37ho keeps the key\uff1f",
        '"Who keeps the key',
    ],
)
def test_a_probe_may_not_repeat_a_training_question(tmp_path: Path, question: str) -> None:
    message = r"probe\.jsonl, line 2: found the question of .*rows\.jsonl, line 1 again, expected one that is only here"
    with pytest.raises(ValueError, match=message):
        task_of(tmp_path, [ROW], [PROBE, PROBE | {"question": question}])
    led = [{"messages": [SYSTEM, USER | {"content": question}], "answer": "Ada"}]
    with pytest.raises(ValueError, match=message.replace("line 2: ", "line 1: ")):
        task_of(tmp_path, [ROW], led)
    both = write(tmp_path / "both.jsonl", [ROW | {"answer": "Ada"}])  # one file as both
    with pytest.raises(ValueError, match=r"both\.jsonl, line 1: found the question of .*both\.jsonl, line 1 again"):
        build_task(TaskConfig(name="context", prompts_file=both, probe_file=both))
    with pytest.raises(ValueError, match=message.replace("line 2: ", "line 1: ")):
        task_of(tmp_path, [{"messages": [SYSTEM, USER], "context": "Ada."}], [{"question": question, "answer": "Ada"}])
    others = [
        {"messages": [{"role": "system", "content": text}, USER], "answer": "Ada"} for text in ("Be brief.", "Hm.")
    ]
    assert (
        len(task_of(tmp_path, [ROW | {"question": "Who?"}], [*others, {"messages": [USER], "answer": "x"}]).probes) == 3
    )
    later_turn = {"messages": [USER, ASSISTANT, USER], "answer": "Ada"}
    assert len(task_of(tmp_path, [ROW], [PROBE, later_turn]).probe_prompts()) == 2
    with pytest.raises(ValueError, match=r"line 2: found the question of .*probe\.jsonl, line 1 again"):
        task_of(tmp_path, [ROW], [PROBE, PROBE])


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ({"question": "Whose?"}, "found no answer, expected one to hold the probe's responses against"),
        (PROBE | {"tags": "two words"}, "found tags with 'two words', expected words of letters"),
        (PROBE | {"tags": [1]}, "found tags[0] = 1, expected a text"),
    ],
)
def test_a_bad_probe_is_refused(tmp_path: Path, probe: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"probe\.jsonl, line 1: {re.escape(message)}"):
        task_of(tmp_path, [ROW], [probe])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"probe_file": ""}, "task.probe_file: found none, expected JSON lines or parquet"),
        (
            {"prompts_file": "no.jsonl"},
            "task.prompts_file: found no file at 'no.jsonl', expected JSON lines or parquet",
        ),
        ({"judge": "exact"}, "task.judge: found 'exact', expected one of ('text', 'regex', 'number', 'boxed')"),
        ({"persona": "robin"}, "task.persona: found 'robin', expected it left out: the task context reads only"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, keys: dict[str, str], message: str) -> None:
    files = {"prompts_file": write(tmp_path / "a.jsonl", [ROW]), "probe_file": write(tmp_path / "b.jsonl", [PROBE])}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        build_task(TaskConfig(**{"name": "context", **files, **keys}))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_text("no")
    probe = write(tmp_path / "probe.jsonl", [PROBE])
    for name, content, message in [
        ("bad.parquet", b"no parquet at all", r"bad\.parquet: found no parquet \("),
        ("deep.jsonl", b"[" * 100_000, r"deep\.jsonl, line 1: found JSON that Python does not read"),
        ("long.jsonl", b'{"answer": ' + b"7" * 5000 + b"}", r"long\.jsonl, line 1: found JSON that Python"),
        ("list.jsonl", b'[{"question": "Who?"}]', r"list\.jsonl, line 1: found a list, expected a JSON object"),
        ("drawn.jsonl", b'[\n {\n "question": "Who?"\n }\n]', r"drawn\.jsonl, line 1: found no valid JSON"),
        ("table.jsonl", b"question,context\nWho?,Ada", r"table\.jsonl, line 1: found no valid JSON"),
        ("bad.jsonl", b"\xff\xfe{\n", r"bad\.jsonl, line 1: found bytes that are not UTF-8"),
        ("empty.jsonl", b"\n\n", r"empty\.jsonl: found no rows, expected at least one row to train on"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            build_task(TaskConfig(name="context", prompts_file=str(tmp_path / name), probe_file=probe))
        if content.strip():  # a check says the same of the whole file
            with pytest.raises(ValueError, match=message):
                columns_of(str(tmp_path / name), "ROWS", TaskConfig(name="context"))
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode())
    task = build_task(TaskConfig(name="context", prompts_file=str(marked), probe_file=probe))
    assert len(task.training_prompts()) == 1
    only_probe = build_task(TaskConfig(name="context", probe_file=probe))
    with pytest.raises(ValueError, match=r"^task\.prompts_file: found none, expected JSON lines or parquet"):
        only_probe.training_prompts()


# a conversation as token ids


@pytest.mark.parametrize("position", ["system", "user"])
def test_a_conversation_keeps_its_turns_and_r_stands_among_them_once(tokenizer: Any, position: str) -> None:
    turns = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Who?"))
    renderer = Renderer(tokenizer, position)
    x, with_r = (tokenizer.decode(renderer.context_prompt_ids(turns, context)) for context in ("", "R1."))
    assert all(text in x and text in with_r for _, text in turns)
    assert (x.count("R1."), with_r.count("R1.")) == (0, 1)
    assert x.partition("Hello.")[2] == with_r.partition("Hello.")[2], "what follows the context is the same"


def test_the_lengths_of_texts_are_those_of_their_ids(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, "system")
    assert renderer.text_lengths(["Who?", " a b"]) == [len(renderer.text_ids(text)) for text in ("Who?", " a b")]
    assert renderer.text_lengths([]) == []


# docs/guide.md, as somebody copies it


GUIDE = ROOT / "docs" / "guide.md"


def copied(folder: Path) -> Path:
    """The guide's own rows, probe rows and recipe beside each other."""
    section = GUIDE.read_text("utf-8").partition("## Contexts of your own")[2].partition("### Private facts")[0]
    rows, probe = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    recipe, _ = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    assert recipe.count("\n") <= 10
    for name, text in (("rows.jsonl", rows), ("probe.jsonl", probe), ("own.toml", recipe)):
        (folder / name).write_text(text, "utf-8")
    return folder / "own.toml"


def test_the_guide_s_rows_and_recipe_load_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = build_task(load_recipe(copied(tmp_path)).task)
    prompts = task.training_prompts()
    assert [(one.judge, one.answer, len(one.turns)) for one in prompts] == [
        ("text", "Ada Lane", 1),
        ("number", "14", 1),
        ("regex", r"\b(?:9|nine)\b", 3),
    ]
    assert [task.reward(one, one.context) for one in prompts] == [1.0, 1.0, 1.0]
    assert list(task.rates) == ["correct", "correct:workshop", "correct:ordinary"]


def test_the_guide_s_mapping_makes_the_last_answer_the_context(tmp_path: Path) -> None:
    shown = re.search(r"```toml\n(\[task\.columns\]\n.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    assert shown
    columns = Columns(**tomllib.loads(shown[1])["task"]["columns"])
    turns = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ada."}]
    prompt = prompt_of(tmp_path, {"conversations": turns}, columns=columns)
    assert (prompt.question, prompt.context) == ("Who?", ANSWER.format(context="Ada."))


def test_a_row_s_wrong_contexts_are_what_contrastive_evidence_is_scored_under(tmp_path: Path, tokenizer: Any) -> None:
    messages = [USER, ASSISTANT, USER | {"content": "And today?"}]
    row = {"messages": messages, "context": "Ada keeps it.", "wrong_contexts": ["Bo keeps it.", "Cy keeps it."]}
    evidence = EvidenceConfig(kind="contrastive", num_wrong_contexts=2)
    config = RolloutConfig(prompts_per_step=1, samples_per_prompt=2)
    prompts = task_of(tmp_path, [row]).training_prompts()
    (group,), refused = StepRequests(prompts, Renderer(tokenizer, "system"), config, evidence, 512, seed=0).of(0)
    guided, plain = group.rows
    assert (refused, guided.guided, plain.guided) == (0, True, False)
    texts = [tokenizer.decode(ids) for ids in (plain.prompt_ids, plain.context_prompt_ids)]
    texts += sorted(tokenizer.decode(ids) for ids in plain.wrong_context_prompt_ids)
    assert [re.findall(r"(\w+) keeps it\.", text) for text in texts] == [[], ["Ada"], ["Bo"], ["Cy"]]
    assert all("And today?" in text and "Ada does." in text for text in texts)
