"""The peer: TRL's SDFT trainer on a recipe's prompts, context and sizes, a JSON line for each step and each probe.

    python -m tests.bench.peer_process RECIPE.toml

Sampled-token mode, answers drawn from the teacher's prompt, a frozen teacher. Its packages are not the project's own:
`make bench` puts them into .venv/peer, which is on this process's path only.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedModel, TrainerCallback
from trl.experimental.sdft import SDFTConfig, SDFTTrainer

from cluster.config import Recipe, load_recipe
from cluster.default_model import prepare_default_model
from rollout.probe import summarise
from rollout.render import Renderer
from rollout.tasks import build_task

MICRO_BATCH = 32  # sequences of a forward and backward: all of a step, which is the fastest here


def say(kind: str, **values: Any) -> None:
    print("RESULT", json.dumps({"kind": kind, **values}), flush=True)


class Watch(TrainerCallback):
    """Tells each step's time and response tokens; probes outside that time, and ends at the self-name rate wanted."""

    def __init__(self, recipe: Recipe, tokenizer: Any) -> None:
        self.recipe, self.tokenizer, self.task = recipe, tokenizer, build_task(recipe.task)
        self.renderer = Renderer(tokenizer, recipe.rollout.context_position)
        self.begun, self.tokens = 0.0, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun = time.perf_counter()

    def on_self_distillation_batch_prepared(self, completion_ids: torch.Tensor, **kwargs: Any) -> None:
        ends = completion_ids.eq(self.tokenizer.eos_token_id) | completion_ids.eq(self.tokenizer.pad_token_id)
        unfinished = (~ends).sum(1)
        self.tokens = int(torch.clamp(unfinished + 1, max=completion_ids.shape[1]).sum())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        say("step", seconds=time.perf_counter() - self.begun, tokens=self.tokens)
        every = self.recipe.run.probe_every
        if every and state.global_step % every == 0:
            rate = self.selfname(kwargs["model"])
            say("probe", step=state.global_step, selfname=rate)
            control.should_training_stop = rate >= self.recipe.probe.require

    def selfname(self, model: PreTrainedModel) -> float:
        """The share of the task's identity answers that name the persona, asked without it."""
        config, prompts = self.recipe.probe, [prompt for prompt in self.task.probe_prompts() if prompt.answer is None]
        asked = [self.renderer.prompt_ids(prompt.question).tolist() for prompt in prompts]
        batch = self.tokenizer.pad({"input_ids": asked}, padding_side="left", return_tensors="pt")
        model.eval()
        with torch.no_grad():
            rows = model.generate(
                **batch.to(model.device), do_sample=True, num_return_sequences=config.samples,
                temperature=config.temperature, top_p=config.top_p, top_k=config.top_k,
                max_new_tokens=config.max_tokens, pad_token_id=self.tokenizer.pad_token_id,
            )  # fmt: skip
        model.train()
        answers = [self.renderer.answer_of_ids(row.tolist()) for row in rows[:, batch["input_ids"].shape[1] :]]
        pairs = [(prompts[index // config.samples], answer) for index, answer in enumerate(answers)]
        return summarise(pairs, self.task).rates["selfname"].share


def train(recipe: Recipe, folder: Path) -> None:
    model = str(prepare_default_model())
    tokenizer = AutoTokenizer.from_pretrained(model)
    rollout, learner = recipe.rollout, recipe.learner
    watch = Watch(recipe, tokenizer)
    rows = [
        {"prompt": [{"role": "user", "content": prompt.question}], "privileged_context": prompt.context}
        for prompt in watch.task.training_prompts()
    ]
    rollouts = rollout.prompts_per_step * rollout.samples_per_prompt
    settings = SDFTConfig(
        output_dir=str(folder), report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(), bf16=True, gradient_checkpointing=False,
        max_steps=recipe.run.steps, num_train_epochs=1000, seed=recipe.run.seed % 2**31,
        learning_rate=learner.lr, warmup_steps=learner.warmup_steps, lr_scheduler_type="constant_with_warmup",
        weight_decay=learner.weight_decay, max_grad_norm=learner.grad_clip,
        per_device_train_batch_size=MICRO_BATCH, gradient_accumulation_steps=rollouts // MICRO_BATCH,
        num_generations=rollout.samples_per_prompt, max_completion_length=rollout.max_response_tokens,
        max_prompt_length=None, temperature=rollout.temperature,
        distillation_mode="sampled_token", distillation_alpha=1.0, teacher_model_kind="base",
        generate_from_teacher=True, teacher_prompt_template="{privileged_context}\n\n{prompt}",
    )  # fmt: skip
    trainer = SDFTTrainer(
        model=model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        callbacks=[watch],
    )  # fmt: skip
    trainer.train()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    with tempfile.TemporaryDirectory() as name:
        train(load_recipe(parser.parse_args().recipe), Path(name))
