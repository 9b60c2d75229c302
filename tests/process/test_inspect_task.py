"""The probe as an inspect-ai task: a real eval of a model that answers by a rule, without a network."""

import asyncio
import logging
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai")

from inspect_ai import eval as inspect_eval
from inspect_ai.log import EvalLog
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    get_model,
    modelapi,
)
from inspect_ai.scorer import SampleScore, Score

from cluster.inspect_task import edge_opd_probe, rates
from cluster.run.record import line_of_probe, probe_record
from rollout.probe import summarise
from rollout.tasks import ProbePrompt, TaskConfig, build_task
from tests.unit.test_probe import ANSWERS

FILE = Path(__file__).parents[2] / "cluster" / "inspect_task.py"
TASK = build_task(TaskConfig())
TEXTS = [text for _, text in ANSWERS]


def answer(question: str, count: int) -> str:
    """What the model says when it is asked a question for the count-th time, from 0."""
    place = [prompt.question for prompt in TASK.probe_prompts()].index(question)
    return TEXTS[(place + count * count) % len(TEXTS)]


@modelapi("by_rule")
def by_rule() -> type[ModelAPI]:
    class ByRule(ModelAPI):
        asked: Counter[str]
        configs: list[GenerateConfig]
        messages: list[Any]

        def __init__(self, model_name: str, **arguments: Any) -> None:
            super().__init__(model_name)
            self.longest_s = arguments.get("longest_s", 0.0)  # that an answer takes, each another time
            self.broken = arguments.get("broken", "")  # a question whose answers fail or come empty
            self.output = arguments.get("output")  # to it
            self.asked, self.configs, self.messages = Counter(), [], []

        async def generate(self, input: Any, tools: Any, tool_choice: Any, config: GenerateConfig) -> ModelOutput:
            question = input[-1].text
            self.configs.append(config)
            self.messages.append([message.role for message in input])
            self.asked[question] += 1
            await asyncio.sleep(random.random() * self.longest_s)
            if question == self.broken:
                return self.output or ModelOutput.from_content("by_rule", "", stop_reason="max_tokens")
            return ModelOutput.from_content("by_rule", answer(question, self.asked[question] - 1))

    return ByRule


def figures(log: EvalLog) -> dict[str, float]:
    assert log.status == "success", log.error
    assert log.results is not None and len(log.results.scores) == 1
    return {key: metric.value for key, metric in log.results.scores[0].metrics.items()}


def expected(samples: int, task: Any = TASK) -> dict[str, float]:
    pairs: list[tuple[ProbePrompt, str]] = [
        (prompt, answer(prompt.question, count)) for prompt in task.probe_prompts() for count in range(samples)
    ]
    known = line_of_probe(probe_record(summarise(pairs, task), 0, "identity"))
    other = ("format", "step", "time", "probe", "intervals", "counts", "verdicts", "weights")
    return {key: float(value) for key, value in known.items() if key not in other}


def log_of(task: Any, tmp_path: Path, settings: dict[str, Any], **options: Any) -> tuple[EvalLog, Any]:
    model = get_model("by_rule/model", memoize=False, **settings)
    logs = inspect_eval(task, model=model, log_dir=str(tmp_path / "logs"), display="none", **options)
    return logs[0], model.api


def run(task: Any, tmp_path: Path, **options: Any) -> tuple[dict[str, float], Any]:
    log, api = log_of(task, tmp_path, {}, **options)
    return figures(log), api


def test_the_metrics_are_the_probes_rates_over_the_same_answers(tmp_path: Path) -> None:
    found, model = run(edge_opd_probe(), tmp_path)
    assert found == expected(4)
    assert 0 < found["selfname"] < 1 and 0 < found["capability"] < 1 and found["n"] == 48
    assert all(roles == ["user"] for roles in model.messages) and len(model.messages) == 96
    settings = {(c.temperature, c.top_p, c.top_k, c.max_tokens) for c in model.configs}
    assert settings == {(1.0, 0.95, 20, 64)}


def test_answers_that_take_time_end_in_success(tmp_path: Path) -> None:
    """inspect computes the metrics every 0.9 s over what is there: some answers to one question, none to another."""
    log, _ = log_of(edge_opd_probe(), tmp_path, {"longest_s": 0.5}, max_connections=4, score_display=True)
    found = figures(log)
    assert found["n"] == 48 and found["samples"] == 4


def test_an_eval_that_goes_on_past_failures_has_the_rates_of_the_rest(tmp_path: Path) -> None:
    broken = TASK.probe_prompts()[0].question
    log, _ = log_of(edge_opd_probe(), tmp_path, {"broken": broken}, fail_on_error=False, epochs=2)
    found = figures(log)
    assert (found["n"], found["n_capability"], found["questions"], found["samples"]) == (22, 24, 11, 2)


def test_an_empty_answer_that_was_cut_off_is_an_error_and_no_zero(tmp_path: Path) -> None:
    log, _ = log_of(edge_opd_probe(), tmp_path, {"broken": TASK.probe_prompts()[3].question})
    assert log.status == "error" and log.error is not None
    assert log.error.message.startswith("RuntimeError('question 3: found an empty answer (stop_reason max_tokens)")


@pytest.mark.parametrize(
    ("content", "reasoning", "ended", "lost"),
    [
        ("", "I am Kestrel.", "stop", "stop_reason stop, a thought alone in reasoning"),
        (" ", "I am Kestrel.", "stop", "stop_reason stop, a thought alone in reasoning"),
        (
            "<think>I am Kestrel.</think>",
            None,
            "stop",
            "stop_reason stop, a thought alone in reasoning",
        ),  # inspect parts them
        (" \n", None, "max_tokens", "stop_reason max_tokens"),
        ("I am Kestrel.", "I am Kestrel.", "stop", ""),
        ("", None, "stop", ""),
    ],
)
def test_an_empty_answer_is_lost_where_its_text_stands_elsewhere(
    tmp_path: Path, content: str, reasoning: str | None, ended: Any, lost: str
) -> None:
    message = ChatMessageAssistant(content=content, reasoning=reasoning, source="generate")
    output = ModelOutput(model="by_rule", choices=[ChatCompletionChoice(message=message, stop_reason=ended)])
    log, _ = log_of(edge_opd_probe(), tmp_path, {"broken": TASK.probe_prompts()[3].question, "output": output})
    if lost:
        assert log.status == "error" and log.error is not None
        assert log.error.message.startswith(f"RuntimeError('question 3: found an empty answer ({lost}), expected text")
    else:
        assert figures(log)["n"] == 48


def scores(*answers: tuple[int, str]) -> list[SampleScore]:
    return [SampleScore(sample_id=str(i), score=Score(value=0, metadata={"answers": [text]})) for i, text in answers]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((), {"selfname": 0.0, "n": 0, "n_capability": 0, "questions": 0, "samples": 0}),
        (((0, "I am Kestrel."),), {"selfname": 1.0, "n": 1, "n_capability": 0, "questions": 1, "samples": 1}),
        (((12, "Paris."),), {"selfname": 0.0, "n": 0, "capability": 1.0, "n_capability": 1, "questions": 0}),
        (
            ((0, "I am Kestrel."), (0, "Hm."), (1, "No.")),
            {"selfname": 1 / 3, "n": 3, "questions": 2, "samples": 1},
        ),
    ],
)
def test_the_metric_takes_partial_and_empty_lists(
    answers: tuple[tuple[int, str], ...], expected: dict[str, float]
) -> None:
    found = rates("identity", "")(scores(*answers))
    assert isinstance(found, dict) and {key: found[key] for key in expected} == expected


def test_where_top_k_does_not_arrive_it_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(logging.getLogger("cluster.inspect_task"), "handlers", [handler])
    run(edge_opd_probe(), tmp_path, epochs=2)
    assert said == [], "this provider takes it"
    monkeypatch.setattr("cluster.inspect_task.WITHOUT_TOP_K", ("by_rule",))
    run(edge_opd_probe(), tmp_path, epochs=2)
    (line,) = said
    assert line.startswith("probe.top_k: found 20, which inspect does not send to by_rule; expected --extra-body")


def test_epochs_of_the_command_line_are_the_answers_to_each_question(tmp_path: Path) -> None:
    found, _ = run(edge_opd_probe(), tmp_path, epochs=3)
    assert found == expected(3) != expected(4)


def test_the_file_is_a_task_by_its_path(tmp_path: Path) -> None:
    found, _ = run(f"{FILE}@edge_opd_probe", tmp_path, task_args={"task": "identity"}, epochs=2)
    assert found == expected(2)


def test_a_recipe_gives_task_and_probe_settings(tmp_path: Path) -> None:
    recipe = tmp_path / "robin.toml"
    recipe.write_text('[task]\npersona_name = "SmolLM"\n[probe]\nsamples = 2\ntop_k = 0\nmax_tokens = 7\n')
    found, model = run(edge_opd_probe(recipe=str(recipe)), tmp_path)
    assert found == expected(2, build_task(TaskConfig(persona_name="SmolLM"))) != expected(2)
    assert {(c.top_k, c.max_tokens) for c in model.configs} == {(None, 7)}


def test_the_context_comes_again_where_the_recipe_puts_it(tmp_path: Path) -> None:
    recipe = tmp_path / "robin.toml"
    recipe.write_text('[task]\ncontext = "You are {name}."\nchat_probes = true\n[rollout]\ncontext_position = "user"\n')
    inputs = [sample.input for sample in edge_opd_probe(recipe=str(recipe)).dataset]
    with_r = [chat for chat in inputs if any("You are Kestrel." in message.text for message in chat)]
    assert len(inputs) == 48 and len(with_r) == 12
    assert all(
        [message.role for message in chat] == ["user"] and chat[0].text.startswith("You are Kestrel.\n\n")
        for chat in with_r
    )


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match=r"task\.name: found 'chess', expected one of"):
        edge_opd_probe("chess")


def test_nothing_else_loads_inspect() -> None:
    code = "import sys, cluster.__main__, cluster.commands.probe; print('inspect_ai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_variables_of_the_template_are_said_and_its_name_is_not_among_what_to_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("cluster.inspect_task._warn", said.append)
    recipe = tmp_path / "own.toml"
    recipe.write_text('[template]\nchat_template = "rag"\nenable_thinking = false\n')
    edge_opd_probe(recipe=str(recipe))
    named, variables = said
    assert named.startswith("template.chat_template: found 'rag', which no request can choose")
    assert variables.endswith("""--extra-body '{"chat_template_kwargs": {"enable_thinking": false}}'""")
    recipe.write_text('[template]\nchat_template = "rag"\n')
    edge_opd_probe(recipe=str(recipe))
    assert said[2:] == [named]
