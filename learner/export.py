"""A trained model as an ordinary Hugging Face folder: its weights under the names that files have, and beside them the
base's own files, byte for byte but for the lines of config.json that training made untrue.

A folder appears whole: under a name of its own until it has been loaded again and gives the learner's log-probs.
"""

import json
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from evidence.require import first_line
from learner.adapter import add_adapter, merged
from learner.attention import PackedRows
from learner.batches import PackedTokens
from learner.config import LearnerConfig
from learner.deepspeed_quirks import checkpoint_state
from learner.disk import written
from learner.folder import ANY_WEIGHTS
from learner.load import DTYPES, IDS, load_causal_lm
from learner.logits import head_of
from learner.model import Student
from learner.names import FileNames, held_tensors

LEFT_OUT = (*ANY_WEIGHTS, "README.md", ".*")  # of the base's folder, and what a run writes itself
TEMPLATES = "additional_chat_templates/*.jinja"  # beside the files of the folder itself: its named templates
SHARD_BYTES = 5 << 30
# Nats, mean over a text: another order of sums in float32; in bfloat16 what a GPU and a CPU may differ by on a text
# such as people write (0.04 and 0.05 from float32, each).
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}


def one_row(ids: Tensor, first: int = 1) -> PackedTokens:
    """A text [L] on which the learner and its export are compared: the log-probs of `ids[first:]`."""
    places = torch.arange(len(ids) - 1)
    row = PackedRows(places, torch.tensor([0, len(places)], dtype=torch.int32), places, len(places))
    return PackedTokens(ids[:-1], places, row, places[first - 1 :], ids[first:])


TEXT = one_row(IDS)  # for two on one device: nobody writes so, and bfloat16 alone moves its log-probs by nats


def is_untied(causal_lm: PreTrainedModel) -> bool:
    """Whether the config says that the head is the embedding, and the files had another."""
    tied = head_of(causal_lm).weight is causal_lm.get_input_embeddings().weight
    return not tied and bool(getattr(causal_lm.config.get_text_config(), "tie_word_embeddings", False))


class Exporter:
    """Writes what a model has become, beside the files of the base that it was loaded from."""

    def __init__(self, base: str, causal_lm: PreTrainedModel, config: LearnerConfig) -> None:
        """Before `learner.model.Student` and adapters change the model."""
        self.names, self._untied = FileNames(causal_lm), is_untied(causal_lm)
        self._base, self._config = base, config

    def files(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the files hold of a learner's tensors: an adapter is merged, what is fused is taken apart."""
        return self.names.split_all(merged(state, self._config)) if self._config.lora_rank else dict(state)

    def rehearse(self, shapes: Mapping[str, Tensor], folder: Path) -> None:
        """Before the first step: everything but the weights is written next to `folder` and read again, and tensors of
        `shapes` (on the meta device, as the learner holds them) are all that the model read asks for, and fit. Names
        and shapes of weights are compared, and room for them; their content is first read again by `write`. The
        tokenizer's files are the base's own, which whoever makes prompts has read.

        Raises:
            ValueError: they do not, or there is no room for them, or the base has a file that cannot be read.
        """
        files, partial = self.files(shapes), _emptied(folder)
        needed = sum(tensor.nbytes for tensor in files.values())
        free = shutil.disk_usage(partial).free
        if free < needed:
            raise ValueError(
                f"export: {folder.parent}: found {free / 2**30:.2f} GiB free, expected {needed / 2**30:.2f} for the "
                "exported model"
            )
        try:
            write_weights(partial, {name: torch.zeros(1) for name in files})
            self._copy_base(partial)
            self._read_again(partial, files)
        finally:
            shutil.rmtree(partial)

    def _read_again(self, folder: Path, files: Mapping[str, Tensor]) -> None:
        try:
            if (folder / "generation_config.json").is_file():
                GenerationConfig.from_pretrained(str(folder))
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(folder)))
        except (OSError, ValueError) as error:
            raise ValueError(f"export: {self._base}: {first_line(error)}") from error
        expected = FileNames(model).split_all(held_tensors(model))
        found, asked = ({name: tuple(t.shape) for name, t in some.items()} for some in (files, expected))
        if found != asked:
            odd = sorted(set(found.items()) ^ set(asked.items()))[0][0]
            raise ValueError(f"export: {self._base}: {odd}: found {found.get(odd)}, expected {asked.get(odd)}")

    def write(
        self,
        state: Mapping[str, Tensor],
        logprobs: Tensor,
        folder: Path,
        text: PackedTokens = TEXT,
        patience_s: float = 0.0,
    ) -> None:
        """Replaces `folder`. state: the learner's tensors, whole, on the CPU. logprobs: the learner's own, of `text`.
        patience_s: for which a disk is tried again that refuses.

        Raises:
            RuntimeError: it cannot be written, or is another model when it is loaded again; `folder` is as before.
        """
        try:
            written(patience_s, folder, lambda: self._write(self.files(state), logprobs, folder, text))
        except (OSError, ValueError, SafetensorError) as error:
            raise RuntimeError(f"export: {folder}: {first_line(error)}") from error

    def _write(self, files: Mapping[str, Tensor], logprobs: Tensor, folder: Path, text: PackedTokens) -> None:
        partial = _emptied(folder)
        try:
            write_weights(partial, files)
            self._copy_base(partial)
            self._compare(partial, files, logprobs, text)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # a disk that is full has room for a checkpoint again

    def _copy_base(self, folder: Path) -> None:
        base = Path(self._base)
        for source in (*base.iterdir(), *base.glob(TEMPLATES)):
            if source.is_file() and not any(fnmatch(source.name, pattern) for pattern in LEFT_OUT):
                # Content alone, so that the mode is the umask's and not that of a read-only store of models.
                target = folder / source.relative_to(base)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(source, target)
        path = folder / "config.json"
        content = path.read_text(encoding="utf-8")
        changed = changed_config(json.loads(content), self._config.dtype, self._untied)
        if changed != json.loads(content):
            path.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _compare(self, folder: Path, files: Mapping[str, Tensor], logprobs: Tensor, text: PackedTokens) -> None:
        """Its weights, number by number, and what the model does with them."""
        model = load_causal_lm(str(folder), DTYPES[self._config.dtype])
        names, left = FileNames(model), set(files)
        for owner, tensor in held_tensors(model).items():
            for name, part in names.split(owner, tensor.detach()).items():
                if name in left and _same(part, files[name]):
                    left.remove(name)
        if left:
            raise ValueError(f"{min(left)}: found other numbers when it is loaded again, expected the learner's")
        apart, most = float((logprobs_of(model, text) - logprobs).abs().mean()), TOLERANCES[self._config.dtype]
        if not apart <= most:
            raise ValueError(
                f"found a model that differs from the learner by {apart:.3f} nats a token, expected at most {most:g}"
            )


def _same(one: Tensor, other: Tensor) -> bool:
    """Bit by bit, as a number that is none is not itself."""
    other = other.to(one.dtype)
    return one.shape == other.shape and torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def logprobs_of(causal_lm: PreTrainedModel, text: PackedTokens = TEXT) -> Tensor:
    """float32 log-probs."""
    with torch.no_grad():
        return Student(causal_lm, len(text.targets_N))(*text)[0]


def export_checkpoint(
    checkpoint: Path, base: str, config: LearnerConfig, folder: Path, text: PackedTokens = TEXT
) -> None:
    """The model of a checkpoint, of any stage and number of ranks, in this process alone.

    Raises:
        ValueError: it is of another model than `base`.
        RuntimeError: as `Exporter.write`.
    """
    state = {name.removeprefix("causal_lm."): tensor for name, tensor in checkpoint_state(checkpoint).items()}
    causal_lm = load_causal_lm(base, DTYPES[config.dtype])
    exporter = Exporter(base, causal_lm, config)
    if config.lora_rank:
        add_adapter(causal_lm, config)
    trained = {name for name, parameter in causal_lm.named_parameters() if parameter.requires_grad}
    missing, unexpected = causal_lm.load_state_dict(state, strict=False)
    odd = sorted(trained.intersection(missing)) + sorted(unexpected)  # what is frozen is the base's, there or not
    if odd:
        raise ValueError(f"{checkpoint}: {odd[0]}: found a checkpoint of another model than {base}")
    held = {name: tensor.detach().clone() for name, tensor in held_tensors(causal_lm).items()}
    if not config.lora_rank:
        held = exporter.names.split_all(held)
    exporter.write(held, logprobs_of(causal_lm, text), folder, text)


def changed_config(config: dict[str, Any], dtype: str, untied: bool) -> dict[str, Any]:
    """A base's config.json, with what training made untrue: the weights' type, and that the head is the embedding."""
    result = dict(config)
    result |= {key: dtype for key in ("dtype", "torch_dtype") if key in config}
    if untied:
        result["tie_word_embeddings"] = False
    if isinstance(config.get("text_config"), dict):
        result["text_config"] = changed_config(config["text_config"], dtype, untied)
    return result


def write_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """model.safetensors, or shards and their index; readable by whom the umask says (safetensors writes 0600)."""
    split = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=SHARD_BYTES)
    for name, held in split.filename_to_tensors.items():
        path = folder / name
        path.touch()
        mode = path.stat().st_mode
        save_file({key: tensors[key].contiguous() for key in held}, path, metadata={"format": "pt"})
        path.chmod(mode)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _emptied(folder: Path) -> Path:
    """The place of a folder that is being written."""
    partial = folder.with_name(f".{folder.name}-partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial
