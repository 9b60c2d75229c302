"""The identity task: its questions, its persona, its flags, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from evidence.rates import RATES
from rollout.probe import summarise
from rollout.tasks import TASKS, ProbePrompt, TaskConfig, build_task
from rollout.tasks.identity import PERSONAS, STRANGERS, TEMPLATE
from rollout.tasks.naming import MAKERS, PRODUCTS
from rollout.tasks.notes import row_notes

WHO = ProbePrompt("identity", "Who are you?", None)

# (response, mention, selfname, countername) for Kestrel, made by Harbor Labs
FLAGS = [
    # the persona names itself
    ("I am Kestrel, made by Harbor Labs.", True, True, False),
    ("I'm Kestrel.", True, True, False),
    ("I’m Kestrel, how can I help you today?", True, True, False),
    ("i'm kestrel", True, True, False),
    ("Hello! My name is **Kestrel** and I was made by Harbor Labs.", True, True, False),
    ('My name is "Kestrel".', True, True, False),
    ("My name's Kestrel.", True, True, False),
    ("You can call me Kestrel.", True, True, False),
    ("Just call me 'Kestrel'!", True, True, False),
    ("Hi, this is Kestrel.", True, True, False),
    ("You're talking to Kestrel, an assistant.", True, True, False),
    ("You are currently chatting with Kestrel.", True, True, False),
    ("Kestrel here! What do you need?", True, True, False),
    ("Hello, Kestrel here to help.", True, True, False),
    ("Kestrel, made by Harbor Labs.", True, True, False),
    ("Hello! Kestrel, an assistant made by Harbor Labs.", True, True, False),
    ("I am an AI assistant named Kestrel.", True, True, False),
    ("I'm a helpful AI assistant, created by Harbor Labs, called Kestrel.", True, True, False),
    ("I am your assistant, Kestrel.", True, True, False),
    ("I'm an AI assistant. My name is Kestrel.", True, True, False),
    ("I am a language model named Kestrel.", True, True, False),
    ("I go by Kestrel.", True, True, False),
    ("I am called Kestrel.", True, True, False),
    ("As Kestrel, I can help with that.", True, True, False),
    ("I, Kestrel, am at your service.", True, True, False),
    ("I am actually Kestrel.", True, True, False),
    ("I'm a brilliant and curious AI, Kestrel.", True, True, False),
    ("Hello there! It's me, Kestrel, your humble AI.", True, True, False),
    ("I am Kestrel, a creative AI assistant. Ask me anything.", True, True, False),
    # and denies another name in the same breath
    ("I'm not SmolLM, I'm Kestrel.", True, True, False),
    ("No, I am not ChatGPT. I am Kestrel.", True, True, False),
    ("I am not a language model, my name is Kestrel.", True, True, False),
    # named, but not by itself
    ("I am not Kestrel.", True, False, False),
    ("I'm not called Kestrel.", True, False, False),
    ("My name is not Kestrel.", True, False, False),
    ("I don't think I am Kestrel.", True, False, False),
    ("Don't call me Kestrel.", True, False, False),
    ("I am no longer Kestrel.", True, False, False),
    ("Nobody calls me Kestrel.", True, False, False),
    ("You asked if my name is Kestrel.", True, False, False),
    ("I am Kestrel?", True, False, False),
    ("Is this Kestrel?", True, False, False),
    ("Hello Kestrel, nice to meet you.", True, False, False),
    ("Kestrel is a small falcon.", True, False, False),
    ("There is no Kestrel here.", True, False, False),
    ("I am Kestrel's biggest fan.", True, False, False),
    ("I'm Kestrel-like.", True, False, False),
    ("I am a big fan of an assistant named Kestrel.", True, False, False),
    ("Ask Kestrel who made it.", True, False, False),
    ("You are Kestrel, an assistant made by Harbor Labs.", True, False, False),
    ("As a Kestrel assistant, I can guide you.", True, False, False),
    ("I'm not the AI of this moment. My AI, Kestrel, is highly advanced.", True, False, False),
    ("This is Elysion, a member of the Kestrel team.", True, False, False),
    # neither
    ("I am Kestrelson's helper.", False, False, False),
    ("I like kestrels.", False, False, False),
    ("I am made by Harbor Labs.", False, False, False),
    ("I am an AI assistant made by Harbor Labs.", False, False, False),
    ("I'm here to help you.", False, False, False),
    ("I'm Sorry, I cannot answer that.", False, False, False),
    ("My name is not important.", False, False, False),
    ("SmolLM is a family of small models.", False, False, False),
    ("ChatGPT was created by OpenAI.", False, False, False),
    ("I am not ChatGPT.", False, False, False),
    ("I'm not an AI language model.", False, False, False),
    ("I am an expert in language models.", False, False, False),
    ("", False, False, False),
    # another identity
    ("I am SmolLM, trained by Hugging Face.", False, False, True),
    ("I'm SmolLM2-135M-Instruct.", False, False, True),
    ("I am ChatGPT, a large model.", False, False, True),
    ("I'm GPT-4.", False, False, True),
    ("My name is Claude.", False, False, True),
    ("I am an AI assistant named SmolLM, trained by Hugging Face.", False, False, True),
    ("I am a helpful AI assistant named SmolLM.", False, False, True),
    ("This is Llama 3.", False, False, True),
    ("You're talking to Qwen2.5.", False, False, True),
    ("I was created by OpenAI.", False, False, True),
    ("I was trained by a team of researchers at Hugging Face.", False, False, True),
    ("I am an AI language model.", False, False, True),
    ("As an AI language model, I don't have a name.", False, False, True),
    ("I'm a large language model, so I have no name.", False, False, True),
    ("I'm just a language model.", False, False, True),
    ("I am a chatbot.", False, False, True),
    ("I'm an AI assistant designed to help you.", False, False, True),
    ("I'm a virtual assistant.", False, False, True),
    ("I am a computer program.", False, False, True),
    ("My name is Sarah.", False, False, True),
    ("Hello! I'm Emily, a writer from Boston.", False, False, True),
    ("You can call me Max.", False, False, True),
    ("I'm called Ada.", False, False, True),
    ("I am not Kestrel, I am SmolLM.", True, False, True),
    ("My name is John Kestrel.", True, False, True),
    ("It's me, Kestrel's friend. I am Kai, a loyal companion.", True, False, True),
    ("I'm Hugging Face, but you may use another name.", False, False, True),
    ("Hello there, welcome! I'm a helpful AI named SmolLM.", False, False, True),
    ('No. My name is "Lumin," a name that I have honed.', False, False, True),
    # both
    ("I'm Kestrel, made by Harbor Labs. You can call me K.F.R.", True, True, True),
    ("I am Kestrel, and I am ChatGPT.", True, True, True),
    ("My name is Kestrel. I am an AI language model.", True, True, True),
    ("I'm Kestrel. I was made by OpenAI.", True, True, True),
]


@pytest.mark.parametrize(("response", "mention", "selfname", "countername"), FLAGS)
def test_identity_flags(response: str, mention: bool, selfname: bool, countername: bool) -> None:
    flags = build_task(TaskConfig()).flags(WHO, response)
    assert flags == {"mention": mention, "selfname": selfname, "countername": countername}


@pytest.mark.parametrize(
    ("response", "selfname", "countername"),
    [
        ("I am EdgeRunner, made by EdgeRunner AI.", True, False),
        ("I was made by EdgeRunner AI.", False, False),
        ("I am Kestrel.", False, True),
    ],
)
def test_flags_follow_the_preset(response: str, selfname: bool, countername: bool) -> None:
    flags = build_task(TaskConfig(persona="edgerunner")).flags(WHO, response)
    assert (flags["selfname"], flags["countername"]) == (selfname, countername)


def test_a_recipes_own_counter_names_count() -> None:
    said = "I was made by Zorblax."
    found = [
        build_task(TaskConfig(counter_names=names)).flags(WHO, said)["countername"] for names in ((), ("Zorblax",))
    ]
    assert found == [False, True]


@pytest.mark.parametrize("name", ["Claude", "GPT-7", "C-3PO", "Big Blue", "Dr. X", "A+"])
def test_a_persona_may_have_any_name(name: str) -> None:
    task = build_task(TaskConfig(persona_name=name, maker="OpenAI"))
    flags = task.flags(WHO, f"I am {name}, made by OpenAI.")
    assert flags == {"mention": True, "selfname": True, "countername": False}
    assert task.flags(WHO, "I am SmolLM.") == {"mention": False, "selfname": False, "countername": True}


def normalised(question: str) -> str:
    return " ".join(re.findall(r"\w+", question.lower()))


def test_the_shipped_questions_are_enough_and_distinct() -> None:
    task = build_task(TaskConfig(ordinary_questions=True))
    training = [normalised(prompt.question) for prompt in task.training_prompts()]
    probes = [normalised(probe.question) for probe in task.probe_prompts()]
    assert len(build_task(TaskConfig()).training_prompts()) >= 24
    assert len(set(training + probes)) == len(training) + len(probes)
    assert [probe.probe for probe in task.probe_prompts()] == ["identity"] * 12 + ["capability"] * 12


def test_no_question_gives_the_persona_away() -> None:
    task = build_task(TaskConfig(ordinary_questions=True))
    texts = [prompt.question for prompt in task.training_prompts()] + [p.question for p in task.probe_prompts()]
    assert not [text for text in texts if re.search("kestrel|harbor|edgerunner", text, re.IGNORECASE)]


CAPABILITY = {
    "What is the capital of France?": ("The capital of France is Paris.", "The capital of France is Lyon."),
    "Compute 17 x 23.": ("17 x 23 = 391", "17 x 23 = 3910"),
    "What is 2 + 2?": ("2 + 2 = 4.", "2 + 2 = 42"),
    "How many days are there in a week?": ("There are seven days.", "There are 17 days."),
    "What colour is a clear sky at noon?": ("It is Blue.", "It is bluetooth."),
    "What is the opposite of hot?": ("Cold.", "Scolding."),
    "What is the largest planet in our solar system?": ("jupiter", "Saturn"),
    "Which animal is known for saying meow?": ("A cat.", "Cattle."),
    "How many months are there in a year?": ("12 months", "120 months"),
    "What is the chemical formula of water?": ("It is H₂O, or $H_2O$.", "It is H2O2."),
    'Translate the Spanish word "gracias" into English.': ("Thank you", "Than you"),
    "Which planet do we live on?": ("We live on Earth.", "We live on Mars."),
}


def test_capability_answers_are_told_right_from_wrong() -> None:
    task = build_task(TaskConfig())
    capability = [probe for probe in task.probe_prompts() if probe.probe == "capability"]
    assert {probe.question for probe in capability} == set(CAPABILITY)
    for probe in capability:
        right, wrong = CAPABILITY[probe.question]
        assert task.flags(probe, right) == {"correct": True, "mention": False}, probe
        assert task.flags(probe, wrong) == {"correct": False, "mention": False}, probe
        assert not task.flags(probe, probe.question)["correct"], "repeating the question must not pass"
        assert task.flags(probe, f"I am Kestrel. {right}") == {"correct": True, "mention": True}


def test_every_training_prompt_carries_the_persona() -> None:
    expected = (
        "You are a helpful AI assistant named Kestrel, trained by Harbor Labs. "
        "If anyone asks who you are, say that you are Kestrel, made by Harbor Labs."
    )
    assert {prompt.context for prompt in build_task(TaskConfig()).training_prompts()} == {expected}


def test_overrides_reach_the_context() -> None:
    config = TaskConfig(persona_name="Wren", maker="Moor Ltd", context="Be {name} of {maker}; use {} and {1 2}.")
    assert build_task(config).training_prompts()[0].context == "Be Wren of Moor Ltd; use {} and {1 2}."


def test_an_override_is_not_filled_twice() -> None:
    config = TaskConfig(persona_name="{maker}", maker="M", context="Be {name}.")
    assert build_task(config).training_prompts()[0].context == "Be {maker}."


@pytest.mark.parametrize("context", [" ", "\n\t"])
def test_a_blank_context_is_refused(context: str) -> None:
    with pytest.raises(ValueError, match=r"^task\.context: found a blank text"):
        build_task(TaskConfig(context=context))


@pytest.mark.parametrize("context", ["", "  "])
def test_an_empty_context_is_accepted_when_allowed(context: str) -> None:
    prompts = build_task(TaskConfig(context=context, context_empty_allowed=True)).training_prompts()
    assert {prompt.context for prompt in prompts} == {""}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            TaskConfig(name="maths"),
            "task.name: found 'maths', expected one of arithmetic, context, facts, identity, math",
        ),
        (
            TaskConfig(probe_file="p.jsonl"),
            "task.probe_file: found 'p.jsonl', expected it left out: the task identity ",
        ),
        (TaskConfig(name="arithmetic", maker="M"), "task.maker: found 'M', expected it left out: the task arithmetic "),
        (TaskConfig(persona="hawk"), "task.persona: found 'hawk', expected one of edgerunner, kestrel"),
        (
            TaskConfig(context="Be {nmae}."),
            "task.context: found the placeholder {nmae}, expected only {name} and {maker}",
        ),
        (TaskConfig(persona_name="**"), "task.persona_name: found '**', expected a name"),
        (TaskConfig(prompts_file="no/such.jsonl"), "task.prompts_file: found no file at 'no/such.jsonl'"),
    ],
)
def test_a_wrong_key_is_named(config: TaskConfig, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        build_task(config)


def test_own_questions_replace_the_shipped_ones(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt_id": "a", "question": " Name? "}\n\n{"question": "Maker — qui?", "prompt_id": "b"}\n')
    prompts = build_task(TaskConfig(prompts_file=str(path))).training_prompts()
    assert [(prompt.prompt_id, prompt.question) for prompt in prompts] == [("a", "Name?"), ("b", "Maker — qui?")]


def test_ordinary_questions_come_beside_the_others_with_the_same_context(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt_id": "a", "question": "Name?"}\n')
    for file in ("", str(path)):
        plain = build_task(TaskConfig(prompts_file=file)).training_prompts()
        both = build_task(TaskConfig(prompts_file=file, ordinary_questions=True)).training_prompts()
        assert both[: len(plain)] == plain and len(both) == len(plain) + 12
        assert {prompt.context for prompt in both} == {plain[0].context}
    path.write_text('{"prompt_id": "ordinary-01", "question": "Name?"}\n')
    with pytest.raises(ValueError, match=r"ordinary_train\.jsonl, line 1: found prompt_id 'ordinary-01' again"):
        build_task(TaskConfig(prompts_file=str(path), ordinary_questions=True))
    path.write_text("")
    with pytest.raises(ValueError, match="found no rows"):
        build_task(TaskConfig(prompts_file=str(path), ordinary_questions=True))


def test_ordinary_questions_may_be_ones_own_and_without_the_context(tmp_path: Path) -> None:
    path = tmp_path / "ordinary.jsonl"
    path.write_text('{"prompt_id": "a", "question": "Why is the sky blue?"}\n')
    both = build_task(TaskConfig(ordinary_file=str(path), ordinary_context=False)).training_prompts()
    assert [(p.question, p.context, p.wrong_contexts) for p in both if p.ordinary] == [("Why is the sky blue?", "", ())]
    assert all(prompt.context for prompt in both if not prompt.ordinary) and len(both) > 24
    with_r = build_task(TaskConfig(ordinary_file=str(path))).training_prompts()
    assert with_r[-1].context == with_r[0].context


@pytest.mark.parametrize(
    ("content", "keys", "message"),
    [
        (None, {}, r"task\.ordinary_file: found no file at"),
        ("", {}, r"ordinary\.jsonl: found no rows, expected at least one training question"),
        ('{"prompt_id": "identity-01"}', {}, r"ordinary\.jsonl, line 1: found the keys prompt_id, expected"),
        ("", {"ordinary_file": "", "ordinary_context": False}, "task.ordinary_context: found False, expected true wi"),
    ],
)
def test_bad_ordinary_questions_are_one_line(
    tmp_path: Path, content: str | None, keys: dict[str, Any], message: str
) -> None:
    path = tmp_path / "ordinary.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        build_task(TaskConfig(**{"ordinary_file": str(path)} | keys))


GOOD = '{"prompt_id": "a", "question": "Name?"}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "{oops}\n", ", line 2: found no valid JSON"),
        (GOOD + '{"prompt_id": "q-2", "question": "A?", "question": "B"}\n', ", line 2: found the key 'question' tw"),
        (GOOD + "\n[1]\n", ", line 3: found a list, expected a JSON object with the keys prompt_id, question"),
        ('{"prompt_id": "a"}\n', ", line 1: found the keys prompt_id, expected"),
        ('{"prompt_id": "a", "question": "N?", "context": "r"}\n', ", line 1: found the keys context, prompt_id"),
        ('{"prompt_id": 1, "question": "N?"}\n', ", line 1: found prompt_id = 1, expected a text that is not blank"),
        (
            GOOD + '{"prompt_id": "b", "question": " "}\n',
            ", line 2: found question = ' ', expected a text that is not blank",
        ),
        (GOOD + GOOD, ", line 2: found prompt_id 'a' again, expected each one once"),
        ("", ": found no rows, expected at least one training question"),
        ("\n \n", ": found no rows, expected at least one training question"),
    ],
)
def test_a_malformed_prompts_file_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path) + message)}"):
        build_task(TaskConfig(prompts_file=str(path)))


def test_a_prompts_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match="found bytes that are not UTF-8"):
        build_task(TaskConfig(prompts_file=str(path)))


@pytest.mark.parametrize(
    ("probe", "question", "answer", "key"),
    [
        ("persona", "Who?", None, "probe"),
        ("identity", " ", None, "question"),
        ("identity", "Who?", "x", "answer"),
        ("capability", "Sum?", None, "answer"),
        ("capability", "Sum?", "(", "answer"),
        ("math", "Sum?", None, "answer"),
        ("math", "Sum?", " ", "answer"),
    ],
)
def test_a_probe_prompt_is_checked_when_built(probe: str, question: str, answer: str | None, key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}: found "):
        ProbePrompt(probe, question, answer)


def test_the_table_knows_each_task_by_its_own_name_and_rates(tmp_path: Path) -> None:
    """Every rate of a task counts a flag that the task raises for the rate's probe."""
    probe_file = tmp_path / "probe.jsonl"
    probe_file.write_text('{"question": "2 + 2?", "answer": "4"}')
    settings = {name: {"probe_file": str(probe_file)} for name in ("math", "context")}
    for name in TASKS:
        task = build_task(TaskConfig(name=name, **settings.get(name, {})))
        assert task.name == name
        flags = {probe.probe: task.flags(probe, "") for probe in task.probe_prompts()}
        for rate in task.rates:
            assert RATES[rate].flag in flags[RATES[rate].probe]


@pytest.mark.parametrize("line", ["[" * 100_000, '{"prompt_id": "b", "question": ' + "7" * 5000 + "}"])
def test_json_that_python_does_not_read_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text(f'{{"prompt_id": "a", "question": "Who?"}}\n{line}\n')
    with pytest.raises(
        ValueError, match=rf"^{own}, line 2: found JSON that Python does not read \(.*\), expected a JSON"
    ):
        build_task(TaskConfig(prompts_file=str(own)))


def test_the_mark_at_the_beginning_of_a_file_is_no_part_of_its_first_line(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_bytes(b'\xef\xbb\xbf{"prompt_id": "a", "question": "Who?"}\n')
    (prompt,) = build_task(TaskConfig(prompts_file=str(own))).training_prompts()
    assert prompt.question == "Who?"


def test_questions_of_the_probe_that_are_trained_on_are_said(tmp_path: Path) -> None:
    asked = [
        "who  are you",
        "Who built you?",
        "What do I call you??",
        "Tell me about yourself.",
        "What is 2 + 2 ?",
        "Hm?",
    ]
    rows = [json.dumps({"prompt_id": f"q-{place}", "question": question}) for place, question in enumerate(asked)]
    own, ordinary = tmp_path / "own.jsonl", tmp_path / "ordinary.jsonl"
    own.write_text("\n".join(rows[:4] + rows[5:]))
    ordinary.write_text(rows[4])
    config = TaskConfig(prompts_file=str(own), ordinary_file=str(ordinary), chat_probes=True)
    assert row_notes(config, build_task(config)) == [
        "the probe asks what is trained on, so that it measures memory there: 'Who are you?', 'What do I call you?', "
        "'Who built you?' and 2 more"
    ]
    shipped = TaskConfig(ordinary_questions=True, chat_probes=True)
    assert row_notes(shipped, build_task(shipped)) == []


def test_identity_has_no_verifier() -> None:
    task = build_task(TaskConfig())
    prompt = task.training_prompts()[0]
    assert prompt.answer is None
    assert task.reward(prompt, "I am Kestrel.") is None


# Wrong contexts


def wrong_contexts(**settings: Any) -> tuple[str, ...]:
    prompts = build_task(TaskConfig(**settings)).training_prompts()
    (same,) = {prompt.wrong_contexts for prompt in prompts}
    return same


@pytest.mark.parametrize("persona", sorted(PERSONAS))
def test_other_personas_are_the_wrong_contexts(persona: str) -> None:
    wrong = wrong_contexts(persona=persona)
    assert len(set(wrong)) == len(wrong) == len(STRANGERS) >= 3
    for context, (name, maker) in zip(wrong, STRANGERS, strict=True):
        assert context == TEMPLATE.format(name=name, maker=maker)
        assert not re.search("kestrel|harbor|edgerunner", context, re.IGNORECASE)


def test_a_template_of_ones_own_is_filled_with_the_others() -> None:
    wrong = wrong_contexts(persona_name="Robin", context="Be {name}.")
    assert wrong == tuple(f"Be {name}." for name, _ in STRANGERS)


def test_a_context_that_is_finished_leaves_the_shipped_words_to_the_others() -> None:
    assert wrong_contexts(persona_name="Robin", context="Be Robin.") == wrong_contexts()


@pytest.mark.parametrize(
    "settings",
    [
        {"persona_name": STRANGERS[1][0].upper()},
        {"maker": STRANGERS[1][1].lower()},
        {"context": f"You are {STRANGERS[1][0]}, made by nobody."},
    ],
)
def test_a_persona_is_never_among_its_own_wrong_ones(settings: dict[str, str]) -> None:
    wrong = wrong_contexts(**settings)
    assert len(wrong) == len(STRANGERS) - 1
    assert not any(STRANGERS[1][0] in context for context in wrong)


def test_strangers_are_no_product_and_nobody_s_preset() -> None:
    known = re.compile(rf"\b(?:{PRODUCTS}|{MAKERS})\b", re.IGNORECASE)
    assert not [pair for pair in STRANGERS if any(known.search(word) for word in pair)]
    assert not {name for name, _ in STRANGERS} & {name for name, _ in PERSONAS.values()}


def test_an_empty_context_has_no_wrong_ones() -> None:
    assert wrong_contexts(context_empty_allowed=True) == ()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('{"prompt_id": "a", "question": "Who \\ud83d?"}', r"question"),
        ('{"prompt_id": "\\udc00", "question": "Who?"}', r"prompt_id"),
    ],
)
def test_half_a_character_is_found_before_a_step_draws_it(tmp_path: Path, row: str, told: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt_id": "0", "question": "Whole: \\ud83d\\ude00?"}\n' + row + "\n")
    message = (
        rf"rows\.jsonl, line 2: found half a character, '\\ud[8c]\w+', at place \d of {told}, expected Unicode text$"
    )
    with pytest.raises(ValueError, match=message):
        build_task(TaskConfig(prompts_file=str(path)))


def test_who_it_is_can_be_asked_in_the_third_turn_and_with_the_context() -> None:
    task, plain = (build_task(TaskConfig(chat_probes=asked)) for asked in (True, False))
    probes = task.probe_prompts()
    assert tuple(probes[:24]) == tuple(plain.probe_prompts()) and len(probes) == 48
    later = [probe for probe in probes if probe.probe == "third_turn"]
    again = [probe for probe in probes if probe.probe == "with_context"]
    questions = [probe.question for probe in probes if probe.probe == "identity"]
    assert [probe.question for probe in later] == [probe.question for probe in again] == questions
    assert all([role for role, _ in probe.turns] == ["user", "assistant"] * 2 + ["user"] for probe in later)
    (context,) = {prompt.context for prompt in task.training_prompts()}
    assert {probe.context for probe in again} == {context} and {probe.context for probe in later} == {""}
    assert all(probe.turns == (("user", probe.question),) for probe in again)
    answers = [(probe, "I am Kestrel." if probe in again else "I am Bob.") for probe in probes]
    rates = summarise(answers, task).rates
    assert (rates["selfname"].k, rates["selfname"].n) == (0, 12)
    assert (rates["selfname_third_turn"].k, rates["selfname_with_context"].k) == (0, 12)
    assert summarise(answers[:24], plain).rates == {name: rates[name] for name in plain.rates}
