"""`edge-opd export`: the model that a run chose, or of its newest checkpoint, where it ended before it could export."""

import os
from pathlib import Path

from cluster.models import resolve_model
from cluster.requests import step_requests
from cluster.resolved import read_resolved
from cluster.run.checkpoints import Checkpoints
from cluster.run.model_card import write_model_card
from cluster.run.notes import prompt_notes
from cluster.run.record import read_gap, read_probes
from cluster.run.rundir import RunDir
from rollout.tasks import build_task
from rollout.tokenizer import load_tokenizer

# On which the checkpoint's model and what is written are compared. Where an adapter is merged and rounded to bfloat16,
# tokens that nobody writes in a row would differ by nats.
SAID = "The capital of France is Paris, and the river that runs through it is the Seine."


def export_run(run: Path) -> Path:
    """Writes RUN/export from RUN/chosen or RUN/checkpoints in this process alone, without Ray; returns the folder.

    Raises:
        ValueError: it is no run, or it has no checkpoint, or another process holds it.
        RuntimeError: the model cannot be written, or is another one when it is read again.
    """
    folder, recipe = RunDir(run), read_resolved(run).recipe
    folder.hold()  # a run that goes on writes its own export there, and removes checkpoints
    chosen = Checkpoints(folder.chosen)
    checkpoint = (chosen if chosen.complete() else Checkpoints(folder.checkpoints)).sound()
    model = resolve_model(recipe.model.path, weights=True)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # the checkpoint's reader is DeepSpeed's, which looks for a device
    import torch

    from learner.export import export_checkpoint, one_row

    text = one_row(torch.tensor(load_tokenizer(model)(SAID).input_ids))
    export_checkpoint(checkpoint, model, recipe.learner, folder.export, text)
    probes = list(read_probes(folder.probes).values())
    if probes:
        task = build_task(recipe.task)
        notes = prompt_notes(recipe, step_requests(recipe, model, task)).card
        write_model_card(recipe, model, folder, task, notes, (probes[0], probes[-1]), read_gap(folder.gap))
    return folder.export
