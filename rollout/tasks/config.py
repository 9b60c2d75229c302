"""The `[task]` table of a recipe."""

from dataclasses import dataclass

from evidence.require import require
from rollout.tasks.judges import JUDGES


@dataclass(frozen=True)
class Columns:
    """`[task.columns]`: what a file calls each column. A column that it lacks is one that its rows do without."""

    messages: str = "messages"  # the turns of a conversation, the user's last
    question: str = "question"  # its only turn, in the place of messages
    context: str = "context"  # r, or a list of its wordings: each group of rollouts draws one, probes have the first
    context_file: str = "context_file"  # a text file with r, in the place of context; from the folder of the rows
    answer: str = "answer"
    wrong_contexts: str = "wrong_contexts"  # a list of texts
    tags: str = "tags"  # a word, or a list of them
    prompt_id: str = "prompt_id"


@dataclass(frozen=True)
class TaskConfig:
    """Which task, and what it is made of. A key that the task does not read must keep its default.

    Raises:
        ValueError: a number outside its range.
    """

    name: str = "identity"  # the task
    persona: str = "kestrel"  # identity: a preset; persona_name, maker and context override its parts
    persona_name: str = ""  # identity: the name to learn; empty: the preset's
    maker: str = ""  # identity: who made the persona; empty: the preset's
    counter_names: tuple[str, ...] = ()  # identity: names that count as another identity, beside the products known
    # identity: the privileged context, which may use {name} and {maker}; empty: the preset's. context: that of rows
    # without one; with {context} in it, the words around that of each row
    context: str = ""
    # identity: other wordings of the context, or it with examples; they may use {name} and {maker}. Each group of
    # rollouts draws one of them all; what asks with the context, such as probe.gap, asks with the context itself
    wordings: tuple[str, ...] = ()
    # JSON lines. identity: prompt_id and question, empty: its own; math: these, solution and optionally answer;
    # context: your rows, as JSON lines or parquet
    prompts_file: str = ""
    ordinary_questions: bool = False  # identity, facts: adds ordinary questions, where the student should not change
    # identity: asks who it is in the third turn of a chat too, and with the context again; context, facts: asks the
    # questions of the gap too, with their context again
    chat_probes: bool = False
    ordinary_file: str = ""  # identity: JSON lines of other ordinary questions, as prompts_file; empty: the dozen
    # identity: whether ordinary questions have the context too; without it their evidence is 0, so that only the KL
    # penalty (learner.beta_kl) acts on them; with evidence.tau = -0.001 k1 does too, and holds them to the base
    ordinary_context: bool = True
    # math: JSON lines of question and answer to evaluate on; context: rows with an answer, as JSON lines or parquet
    probe_file: str = ""
    # context, facts: the task's main rate is of the probe's questions with this tag; empty: facts: those of facts,
    # context: all. probe.require, probe.patience and export.choose go by the main rate
    main_tag: str = ""
    columns: Columns = Columns()  # context: the file's own names for messages, question, context and the others
    judge: str = "text"  # context: how an answer is judged where its row does not say
    # identity, context: an empty context is no context, so that e is 0: ordinary rows, which only the anchor holds
    context_empty_allowed: bool = False
    num_problems: int = 64  # arithmetic: how many problems it trains on
    largest: int = 99  # arithmetic: the largest number in a problem
    seed: int = 0  # arithmetic: which problems; all but identity: which contexts are the wrong ones

    def __post_init__(self) -> None:
        if not all(name.strip() for name in self.counter_names):
            raise ValueError(f"task.counter_names: found {self.counter_names!r}, expected names that are not blank")
        for key, least in (("num_problems", 1), ("largest", 1), ("seed", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"task.{key}: found {getattr(self, key)!r}, expected at least {least}")
        require(self.judge in JUDGES, "task.judge", self.judge, f"one of {tuple(JUDGES)}")
