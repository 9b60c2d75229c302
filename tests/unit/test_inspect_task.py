"""The probe as an inspect-ai task: a real eval of a model that answers by a rule, without a network."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai")

from inspect_ai import eval as inspect_eval
from inspect_ai.log import EvalLog
from inspect_ai.model import GenerateConfig, ModelAPI, ModelOutput, get_model, modelapi

from cluster.inspect_task import edge_opd_probe
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
            self.asked, self.configs, self.messages = Counter(), [], []

        async def generate(self, input: Any, tools: Any, tool_choice: Any, config: GenerateConfig) -> ModelOutput:
            question = input[-1].text
            self.configs.append(config)
            self.messages.append([message.role for message in input])
            self.asked[question] += 1
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
    other = ("format", "step", "time", "probe", "intervals", "counts")
    return {key: float(value) for key, value in known.items() if key not in other}


def run(task: Any, tmp_path: Path, **options: Any) -> tuple[dict[str, float], Any]:
    model = get_model("by_rule/model", memoize=False)
    logs = inspect_eval(task, model=model, log_dir=str(tmp_path / "logs"), display="none", **options)
    return figures(logs[0]), model.api


def test_the_metrics_are_the_probes_rates_over_the_same_answers(tmp_path: Path) -> None:
    found, model = run(edge_opd_probe(), tmp_path)
    assert found == expected(4)
    assert 0 < found["selfname"] < 1 and 0 < found["capability"] < 1 and found["n"] == 48
    assert all(roles == ["user"] for roles in model.messages) and len(model.messages) == 96
    settings = {(c.temperature, c.top_p, c.top_k, c.max_tokens) for c in model.configs}
    assert settings == {(1.0, 0.95, 20, 64)}


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


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match=r"task\.name: found 'chess', expected one of"):
        edge_opd_probe("chess")


def test_nothing_else_loads_inspect() -> None:
    code = "import sys, cluster.__main__, cluster.commands.probe; print('inspect_ai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
