"""What is looked at before anything starts: every prompt of the run, the models, and what all of it costs."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BloomConfig, CohereConfig, Gemma3TextConfig, GPT2Config, LlamaConfig, Phi3Config

from cluster.__main__ import main
from cluster.config import Recipe, load_recipe
from cluster.models import resolve_model
from cluster.requests import step_requests
from cluster.run import lengths as lengths_module
from cluster.run.checks import (
    check_caches,
    check_family,
    check_long_rope,
    check_models,
    check_probe,
    check_prompts,
    check_recipe,
)
from cluster.run.families import CAUSAL, IMAGES, families
from cluster.run.lengths import MANY, SAMPLE, SLACK, lengths_near, remembered_lengths
from rollout.config import EngineConfig
from rollout.positions import most_positions
from rollout.render import Pair, Renderer
from rollout.tasks import build_task
from tests import fakes
from tests.process.test_folder import pointer, quantised
from tests.runs import RECIPE, hub_at, small_arguments
from tests.s3 import unreachable


def questions(folder: Path, texts: list[str]) -> str:
    path = folder / "questions.jsonl"
    rows = [{"prompt_id": f"q-{place}", "question": text} for place, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe_of(prompts_file: str, *overrides: str) -> Recipe:
    settings = ["task.prompts_file=" + prompts_file, "rollout.prompts_per_step=1", "run.steps=12", *overrides]
    return load_recipe(RECIPE, settings)


def checked(recipe: Recipe, model: Path) -> str:
    task = build_task(recipe.task)
    return check_prompts(recipe, step_requests(recipe, str(model), task), task)


# Prompts


@pytest.mark.parametrize("long", [0, 5])
def test_a_prompt_that_does_not_fit_is_told_before_the_step_that_draws_it(
    tmp_path: Path, default_model: Path, long: int
) -> None:
    texts = ["Who are you?"] * 12
    texts[long] = "very long " * 300
    recipe = recipe_of(questions(tmp_path, texts))
    task = build_task(recipe.task)
    requests = step_requests(recipe, str(default_model), task)
    steps = [step for step in range(12) if _refuses(requests, step)]
    assert len(steps) == 1
    with pytest.raises(
        ValueError, match=rf"step {steps[0]}: found 1 of 1 prompts refused \(q-{long} has 6\d\d prompt tok"
    ):
        checked(recipe, default_model)
    shorter = recipe_of(recipe.task.prompts_file, f"run.steps={max(1, steps[0])}")
    if steps[0]:
        checked(shorter, default_model)  # a run that ends before it


def _refuses(requests: Any, step: int) -> bool:
    try:
        requests.of(step)
    except ValueError:
        return True
    return False


def test_the_check_and_the_steps_agree_with_wrong_contexts_too(tmp_path: Path, default_model: Path) -> None:
    texts = [f"Who are you? {'word ' * (place * 40)}" for place in range(12)]
    overrides = ("evidence.kind=contrastive", "rollout.prompts_per_step=4", "rollout.max_refused_fraction=0.6")
    for window in (300, 420, 512):
        recipe = recipe_of(
            questions(tmp_path, texts), *overrides, f"student.window={window}", f"teacher.window={window}"
        )
        task = build_task(recipe.task)
        requests = step_requests(recipe, str(default_model), task)
        first = next((step for step in range(12) if _refuses(requests, step)), None)
        if first is None:
            checked(recipe, default_model)
        else:
            with pytest.raises(ValueError, match=rf"step {first}: found "):
                checked(recipe, default_model)


@pytest.mark.parametrize(("long", "count"), [((3,), 1), ((2, 7), 2)])
def test_prompts_that_may_be_refused_are_counted_before_the_run(
    tmp_path: Path, default_model: Path, long: tuple[int, ...], count: int
) -> None:
    texts = [("very long " * 300 if place in long else "Who are you? ") + str(place) for place in range(12)]
    recipe = recipe_of(questions(tmp_path, texts), "rollout.prompts_per_step=12", "run.steps=2")
    note = checked(recipe, default_model)
    assert re.fullmatch(
        rf"{count} of 12 training prompts do not fit student\.window and teacher\.window = 512 with "
        r"rollout\.max_response_tokens = 40 and are refused when they are drawn, as "
        r"rollout\.max_refused_fraction = 0\.5 allows \(q-\d has 6\d\d prompt tokens\)",
        note,
    )
    assert checked(load_recipe(RECIPE), default_model) == ""


def test_all_checks_end_with_the_model_and_what_is_worth_knowing_of_its_prompts(
    tmp_path: Path, default_model: Path
) -> None:
    """Of the default model's own text, one line; of rows that do not fit, another; of a template that thinks, a third;
    of a question that the probe has, and of a special token in a row, one more each.
    The model is tiny: no check reads its weights."""
    model = fakes.tiny_model(tmp_path / "model", vocab=49152, tokenizer_from=default_model)
    template = model / "chat_template.jinja"
    opens = "{% if add_generation_prompt %}<think>{% endif %}"
    template.write_text(template.read_text() + opens)
    prompts = questions(tmp_path, ["Who are you?", "very long <|im_end|> " * 300])
    recipe = recipe_of(prompts, f"model.path={model}", "rollout.prompts_per_step=2", "run.steps=1")
    inputs, notes = check_recipe(recipe, build_task(recipe.task))
    repeats, special, difference, thinks, refused = notes.shown
    assert inputs.model == str(model)
    assert repeats == "the probe asks what is trained on, so that it measures memory there: 'Who are you?'"
    assert special == (
        f"{prompts}: 1 of 2 rows have special tokens in their texts (<|im_end|>): the model reads them as the chat "
        "template's own, such as the end of a turn, and not as letters"
    )
    assert difference == (
        "in 2 of 2 prompts with a context, the context stands in the place of 'You are a helpful AI assistant named "
        "SmolLM, trained by Hugging Face', a text of the chat template itself"
    )
    assert thinks.startswith(
        "a prompt ends inside a thinking block (<think>): the 40 tokens of rollout.max_response_tokens"
    )
    assert refused.startswith("1 of 2 training prompts do not fit student.window and teacher.window = 512")
    assert [*notes.kept] == [*notes.shown] and [*notes.card] == [difference, thinks]


def test_a_prompt_at_fault_is_named_with_its_file(tmp_path: Path, default_model: Path) -> None:
    prompts = questions(tmp_path, ["Who are you?"])
    recipe = recipe_of(prompts, "task.context=You are a helpful AI assistant named SmolLM, trained by Hugging Face")
    said = (
        rf"^{prompts}: prompt q-0: rollout\.context_position = 'system': found a context that the chat template itself"
    )
    with pytest.raises(ValueError, match=said):
        check_recipe(recipe, build_task(recipe.task))


def test_a_question_of_the_probe_that_does_not_fit_is_told(tmp_path: Path, tokenizer: Any) -> None:
    probe = tmp_path / "probe.jsonl"
    probe.write_text(
        json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n" + json.dumps({"question": "add " * 600, "answer": "2"})
    )
    recipe = load_recipe(RECIPE, ["task.name=math", f"task.probe_file={probe}"])
    with pytest.raises(
        ValueError,
        match=r"^student.window: found 512, expected more than the 6\d\d tokens of question 2 of the probe, "
        rf"task\.probe_file = {probe} \('add ",
    ):
        check_probe(recipe, Renderer(tokenizer, "system"), build_task(recipe.task))


def test_lengths_of_many_prompts_are_measured_once(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_OPD_CACHE", str(tmp_path))
    renderer, pairs = Renderer(tokenizer, "system"), [(f"Who is {number}?", "") for number in range(MANY)]
    found = remembered_lengths(renderer, pairs)
    assert found == {pair: len(renderer.prompt_ids(pair[0])) for pair in pairs}
    (kept,) = (tmp_path / "lengths").iterdir()
    monkeypatch.setattr(Renderer, "lengths", None)
    assert remembered_lengths(renderer, pairs) == found
    assert kept.name in {path.name for path in (tmp_path / "lengths").iterdir()}
    with pytest.raises(TypeError):  # another place for r, or another text, is measured again
        remembered_lengths(Renderer(tokenizer, "user"), pairs)
    with pytest.raises(TypeError):
        remembered_lengths(renderer, [*pairs, ("another", "")])


DAMAGES = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "not UTF-8": lambda text: b"\xff\xfe\x00",
    "of other prompts": lambda text: text.replace('"', '"another ', 1),
    "of another version": lambda text: json.dumps([7] * MANY),
    "one too many": lambda text: text.replace("[", "[7, ", 1),
    "a text among them": lambda text: text.replace("[", '["', 1).replace(",", '",', 1),
    "no list": lambda text: f"{text.partition('[')[0]}{MANY}}}",
    "too deep": lambda text: "[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_lengths_are_measured_again_and_replaced(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setenv("EDGE_OPD_CACHE", str(tmp_path))
    renderer, pairs = Renderer(tokenizer, "system"), [(f"Who is {number}?", "") for number in range(MANY)]
    found = remembered_lengths(renderer, pairs)
    (kept,) = (tmp_path / "lengths").iterdir()
    whole = kept.read_text()
    damaged = DAMAGES[damage](whole)
    kept.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    assert kept.read_bytes() != whole.encode()
    assert remembered_lengths(renderer, pairs) == found
    assert kept.read_text() == whole


def test_a_cache_that_cannot_be_written_is_no_fault(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EDGE_OPD_CACHE", str(tmp_path / "file" / "cache"))
    pairs = [(f"Who is {number}?", "") for number in range(MANY)]
    assert remembered_lengths(Renderer(tokenizer, "system"), pairs).keys() == set(pairs)


TEXTS = [
    "Who keeps the key?",
    "a  b\n\n\nc",
    "x = [1,\n\t2]",
    "日本語の質問です",
    "word " * 120,
    "née Zürich\u00a0naïve",
    "9" * 90,
    "\n".join(f"{'Ada Lane':<30}{'keeper':<20}{place:>10}" for place in range(9)),  # columns
    " " * 99 + "a\u3000\u3000b \n \n c",
]


@pytest.mark.parametrize("position", ["system", "user"])
def test_a_length_is_estimated_only_where_it_is_far_below_the_limit(tokenizer: Any, position: str) -> None:
    renderer = Renderer(tokenizer, position)
    before = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."))
    turns = [(("user", text),) for text in TEXTS] + [(*before, ("user", text)) for text in TEXTS]
    pairs = [(question, context) for question in turns for context in ("", "Ada keeps the key.\n" * 9)]
    exact = {pair: len(renderer.context_prompt_ids(*pair)) for pair in pairs}
    for limit in (0, 60, 100, 200, 10_000):
        found = lengths_near(renderer, pairs, limit)
        for pair, length in exact.items():
            assert (found[pair] > limit) == (length > limit), (pair, limit, found[pair], length)
            assert length <= limit or found[pair] == length
    assert lengths_near(renderer, [], 10) == {}


def near_a_limit(tokenizer: Any, limit: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of 900 questions of up to 95 tokens are measured for the limit; what is found of each is right."""
    renderer, measured, lengths = Renderer(tokenizer, "system"), list[Pair](), Renderer.lengths
    pairs: list[Pair] = [(f"Who keeps key {place}?" + " Tell me." * (place % 15), "") for place in range(900)]
    exact = dict(zip(pairs, renderer.lengths(pairs), strict=True))

    def counted(self: Renderer, asked: Sequence[Pair]) -> list[int]:
        measured.extend(pair for pair in asked if pair in exact)
        return lengths(self, asked)

    monkeypatch.setattr(Renderer, "lengths", counted)
    found = lengths_near(renderer, pairs, limit)
    monkeypatch.undo()
    assert all((found[pair] > limit) == (length > limit) for pair, length in exact.items())
    assert all(found[pair] == length for pair, length in exact.items() if length > limit)
    return len({*measured})


def test_prompts_that_all_but_fill_the_window_are_not_all_measured(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = Renderer(tokenizer, "system")
    longest = max(renderer.lengths([(f"Who keeps key {place}?" + " Tell me." * 14, "") for place in range(900)]))
    assert near_a_limit(tokenizer, longest + SLACK, monkeypatch) <= 2 * SAMPLE
    assert near_a_limit(tokenizer, longest - 1, monkeypatch) > 50
    # of a tokenizer whose estimates are too small all are
    estimated = lengths_module.estimated_lengths
    monkeypatch.setattr(
        lengths_module,
        "estimated_lengths",
        lambda *given: {pair: length - SLACK - 1 for pair, length in estimated(*given).items()},
    )
    assert near_a_limit(tokenizer, longest - 1, monkeypatch) > 60


# Models


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (pointer, "model.safetensors: found a git-lfs pointer, expected the weights: run `git lfs pull` in"),
        (quantised("gptq"), "config.json: found weights that are quantised (gptq), expected bfloat16"),
        (quantised("awq"), "config.json: found weights that are quantised (awq), expected bfloat16"),
    ],
)
@pytest.mark.parametrize("key", ["model.path", "teacher.path"])
def test_run_refuses_a_folder_that_cannot_be_trained_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], told: str, key: str
) -> None:
    folder = fakes.tiny_model(tmp_path / "model")
    damage(folder)
    capsys.readouterr()  # how the model was written
    assert main(small_arguments(tmp_path / "run", f"{key}={folder}")) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"edge-opd: {key}: {folder}/{told}") and said.count("\n") == 1, said
    assert not (tmp_path / "run").exists()


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hub is a port where nobody listens."""
    monkeypatch.setattr("cluster.hub.HUB_S", 300.0)
    with unreachable("closed") as port:
        hub_at(f"http://127.0.0.1:{port}", monkeypatch)
        yield


@pytest.mark.parametrize("path", ["models/my-modle", "my-modle"])
def test_a_misspelt_folder_is_told_at_once(no_hub: None, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slept = list[float]()  # between the library's own attempts, which last half a minute
    clock = SimpleNamespace(**{**vars(time), "sleep": slept.append})
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    with pytest.raises(
        ValueError,
        match=rf"^teacher.path: found no folder '{path}' here, and as a hub id: .*ConnectError: .*refused.*; expected",
    ):
        resolve_model(path, "teacher.path")
    assert slept == []


def test_a_hub_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.hub.HUB_S", 1.0)
    with unreachable("silent") as port:
        hub_at(f"http://127.0.0.1:{port}", monkeypatch)
        said = r"^model.path: found no folder 'org/model' here, and as a hub id: no answer within 1 s"
        with pytest.raises(ValueError, match=said):
            resolve_model("org/model")


@pytest.mark.parametrize("path", ["./models/none", "/nowhere/model", "~/nowhere", "runs/x/export", "models/none/"])
def test_what_looks_like_a_folder_is_no_hub_id(path: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^model.path: found no folder '{path}' here, expected a Hugging Face model fol"
    ):
        resolve_model(path)


def test_a_name_that_no_hub_can_have_is_told(no_hub: None) -> None:
    with pytest.raises(
        ValueError, match=r"^model.path: found no folder 'my model' here, and as a hub id: HFValidationError"
    ):
        resolve_model("my model")
    with pytest.raises(ValueError, match=r"^model.path: found no folder 'xxx.*' here, and as a hub id: HFValidationEr"):
        resolve_model("x" * 300)


def test_an_offline_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = r"found no folder 'org/model' here, and as a hub id: .*offline mode is enabled"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        hub_at(f"http://127.0.0.1:{listening.getsockname()[1]}", monkeypatch)
        with pytest.raises(ValueError, match=said):
            resolve_model("org/model")
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has connected
            listening.accept()


def test_a_run_without_an_export_is_no_source_of_a_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cluster.run.rundir import RunDir

    RunDir(tmp_path / "run").claim(load_recipe(RECIPE), resume=False)
    assert main(["probe", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"edge-opd: {tmp_path}/run: found a run without an export, expected one that has ended")
    assert error.count("\n") == 1


def test_an_adapter_is_refused_with_the_command_that_merges_it(tmp_path: Path, default_model: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    base = fakes.tiny_model(tmp_path / "base", vocab=49152, tokenizer_from=default_model)
    adapter = tmp_path / "Ada's adapter"
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
    )
    model.save_pretrained(adapter)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(default_model / name, adapter / name)
    with pytest.raises(
        ValueError, match=r"^teacher.path: found a LoRA adapter in .*, expected a model: `(.*)` writes"
    ) as caught:
        resolve_model(str(adapter), "teacher.path")
    command = re.findall("`(.*)`", str(caught.value))[0]
    subprocess.run(shlex.split(command.replace("python", sys.executable, 1)), check=True, timeout=500)
    merged = AutoModelForCausalLM.from_pretrained(resolve_model(f"{adapter}-merged"))
    before, after = (
        m.get_parameter("model.layers.0.self_attn.q_proj.weight")
        for m in (AutoModelForCausalLM.from_pretrained(base), merged)
    )
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert torch.allclose(after - before, layer.get_delta_weight("default"), atol=1e-5) and not after.equal(before)
    assert (tmp_path / "Ada's adapter-merged" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        (
            "qwen2_5_vl",
            r"found 'qwen2_5_vl' \(vision_config beside a text model\), expected a causal language model$",
        ),
        (
            "mistral3",
            r"found 'mistral3' .*, expected a causal language model; `python -c .*` writes its text model$",
        ),
        ("t5", r"found 't5', expected a causal language model$"),
    ],
)
def test_a_model_that_is_no_causal_language_model_is_refused_before_anything_starts(
    tmp_path: Path, model_type: str, said: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=rf"^model.path: {tmp_path}: {said}"):
        check_family(str(tmp_path), "model.path")


@pytest.mark.parametrize("named", [CAUSAL, IMAGES])
def test_the_kinds_of_models_are_transformers_own(named: str) -> None:
    from transformers.models.auto import modeling_auto

    assert families(named) == getattr(modeling_auto, named).keys()


def test_the_checks_of_a_run_import_nothing_that_makes_models() -> None:
    """Which takes seconds of a processor before anything starts."""
    asked = "import sys, cluster.run.start; print('transformers.modeling_utils' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "brandnew"}, "has model type `brandnew` but Transformers does not recognize this architecture"),
        ({}, "Unrecognized model in "),
        (
            {"model_type": "of-its-own", "auto_map": {"AutoConfig": "c.C"}},
            "contains custom code which must be executed",
        ),
        ({"model_type": "llama", "hidden_size": "wide"}, "'hidden_size' expected int, got str"),
        ({"model_type": ["llama"]}, "unhashable type"),
    ],
)
def test_a_config_that_transformers_does_not_read_is_one_line_without_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr("sys.stdin", None)  # where it would be asked whether to run the folder's own code
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = rf"^teacher\.path: {tmp_path}: found a config\.json that transformers [\d.]+ does not read \(.*{said}"
    with pytest.raises(ValueError, match=found) as error:
        check_family(str(tmp_path), "teacher.path")
    assert "\n" not in str(error.value) and str(error.value).endswith(
        "expected one of a causal language model that it knows"
    )


@pytest.mark.parametrize("pool", ["student", "teacher"])
def test_a_window_is_at_most_the_models_positions(tmp_path: Path, default_model: Path, pool: str) -> None:
    model = fakes.tiny_model(tmp_path, tokenizer_from=default_model, vocab=49152, max_position_embeddings=512)
    for window in (512, 513, 100_000):
        recipe = load_recipe(RECIPE, [f"model.path={model}", f"{pool}.window={window}"])
        if window == 512:  # the last position is usable
            check_models(recipe)
            continue
        with pytest.raises(ValueError) as refused:
            check_models(recipe)
        assert str(refused.value) == f"{pool}.window: found {window}, expected at most 512, the positions of {model}"


def test_targets_of_an_adapter_that_the_model_lacks_are_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["learner.lora_rank=4", "learner.lora_targets=['q_proj', 'qkv_proj']", "teacher.num_engines=1"]
    assert main(small_arguments(tmp_path / "run", *settings)) == 2
    said = capsys.readouterr().err
    assert said.startswith("edge-opd: learner.lora_targets: found qkv_proj, expected linear layers of LlamaForCausalLM")
    assert said.count("\n") == 1 and not (tmp_path / "run").exists()


SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}


def llama(**told: Any) -> LlamaConfig:
    return LlamaConfig(**SIZES, max_position_embeddings=512, **told)


def turned(kind: str, **told: float) -> LlamaConfig:
    rope = {"rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128, "rope_type": kind}
    return llama(rope_parameters=rope | told)


POSITIONS: list[tuple[Any, int | None]] = [
    (llama(), 512),
    (turned("linear"), 2048),
    (turned("dynamic"), 2048),
    (turned("yarn"), 512),
    (turned("llama3", low_freq_factor=1.0, high_freq_factor=4.0), 512),
    (GPT2Config(n_positions=300), 300),
    (CohereConfig(**SIZES, max_position_embeddings=512, model_max_length=700), 700),
    (Gemma3TextConfig(**SIZES, max_position_embeddings=512), 512),
    (BloomConfig(), None),
]


@pytest.mark.parametrize(("config", "most"), POSITIONS)
def test_positions_are_those_that_vllm_takes(config: Any, most: int | None) -> None:
    """tests/engine/test_vllm_contract.py asks vLLM itself."""
    assert most_positions(config) == most


@pytest.mark.parametrize(("gib", "window", "fits"), [(0.0001, 512, False), (0.5, 512, True), (2.5, 512, True)])
def test_a_cache_without_room_for_one_sequence_is_refused(
    default_model: Path, gib: float, window: int, fits: bool
) -> None:
    recipe = load_recipe(RECIPE, [f"student.kv_cache_gib={gib}", f"student.window={window}"])
    if fits:
        check_caches(recipe, str(default_model))
        return
    with pytest.raises(
        ValueError, match=rf"^student\.kv_cache_gib: found {gib}, expected at least 0\.0\d+, for the 512"
    ):
        check_caches(recipe, str(default_model))


def test_a_teachers_cache_is_looked_at_where_it_has_one(default_model: Path) -> None:
    small = ["teacher.kv_cache_gib=0.001", "teacher.dtype=float32"]
    with pytest.raises(ValueError, match=r"^teacher\.kv_cache_gib: found 0\.001, expected at least 0\.0\d+, for the "):
        check_caches(load_recipe(RECIPE, small), str(default_model))
    check_caches(load_recipe(RECIPE, [small[0], "learner.lora_rank=4"]), str(default_model))  # no engine of its own


def phi(folder: Path, **told: Any) -> str:
    """The config.json of a Phi-3 with longrope, whose original length is 4,096."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 4096} | factors
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "pad_token_id": 0, "max_position_embeddings": 131_072}
    Phi3Config(**sizes, original_max_position_embeddings=4096, rope_parameters=rope | told).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("pool", ["student", "teacher"])
def test_a_window_beyond_longropes_original_length_is_refused(pool: str, tmp_path: Path) -> None:
    model = phi(tmp_path)
    check_long_rope(pool, EngineConfig(window=4096), model)
    with pytest.raises(ValueError) as refused:
        check_long_rope(pool, EngineConfig(window=4097), model)
    assert str(refused.value) == (
        f"{pool}.window: found 4097, expected at most 4096, the original positions of {model}: beyond them vLLM and "
        "transformers take its longrope factors by different rules"
    )


def test_other_models_have_any_window(tmp_path: Path, default_model: Path) -> None:
    check_long_rope("student", EngineConfig(window=8192), str(default_model))
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 4096}
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 16_384}
    LlamaConfig(**sizes, rope_parameters=yarn).save_pretrained(tmp_path)
    check_long_rope("student", EngineConfig(window=8192), str(tmp_path))


def test_the_windows_of_both_pools_are_looked_at(tmp_path: Path, default_model: Path) -> None:
    """Where a run starts, with a model of the default one's tokenizer."""
    folder = fakes.tiny_model(tmp_path, tokenizer_from=default_model, vocab=49152)
    config = json.loads((folder / "config.json").read_text())
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 128}
    size = config["hidden_size"] // config["num_attention_heads"] // 2
    factors = {"short_factor": [1.0] * size, "long_factor": [4.0] * size}
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": rope | factors}))
    for pool, other in (("student", "teacher"), ("teacher", "student")):
        recipe = load_recipe(RECIPE, [f"model.path={folder}", f"{pool}.window=160", f"{other}.window=128"])
        with pytest.raises(ValueError, match=f"{pool}.window: found 160, expected at most 128"):
            check_models(recipe)
