"""What lies between hidden states and logits, family by family, against transformers' own float32 forward."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from evidence.records import TrainRow
from learner.batches import count, pack
from learner.config import LearnerConfig
from learner.engine import divergence_of
from learner.frozen import FrozenModel
from learner.head import LogprobHead
from learner.load import distance_from_own_forward, load_causal_lm
from learner.logits import LogitForm, logit_form
from learner.model import Student
from tests.families import SIZES, VOCAB, tiny
from tests.process.test_frozen import row_divergence
from tests.reference import logprobs_of, plain_model

CAPPED = {"gemma3": 4.0, "gemma4": 5.0, "nanochat": 3.0}
SCALED = {"granite": 1 / 6, "granitemoe": 1 / 6, "cohere": 0.3, "cohere2": 0.3, "hyperclovax": 0.4}
PLAIN = ("llama", "gpt2", "gpt_neox", "phi3", "deepseek_v3", "glm4_moe", "apertus")
FORMS = (
    {family: LogitForm(1.0, cap) for family, cap in CAPPED.items()}
    | {family: LogitForm(scale) for family, scale in SCALED.items()}
    | {family: LogitForm() for family in PLAIN}
)


def make_row(num_prompt: int, num_response: int, seed: int) -> TrainRow:
    rng = np.random.default_rng(seed)
    prompt, response = (rng.integers(3, VOCAB, num).astype(np.int32) for num in (num_prompt, num_response))
    context = np.concatenate([rng.integers(3, VOCAB, 3).astype(np.int32), prompt])
    return TrainRow(f"{seed}", False, prompt, context, response, *[np.ones(num_response, np.float32)] * 4)


ROWS = [make_row(5, 7, 0), make_row(1, 4, 1), make_row(6, 1, 2)]
LENGTHS = [len(row.response_ids) for row in ROWS]
BATCH = pack(ROWS, count(ROWS), "response")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: tiny(family, tmp_path_factory.mktemp(family)) for family in FORMS}


def same(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float32
    for mine, exact in zip(found.split(LENGTHS), expected.split(LENGTHS), strict=True):
        assert mine[0].item() == pytest.approx(exact[0].item(), abs=2e-5)
        assert mine[-1].item() == pytest.approx(exact[-1].item(), abs=2e-5)
        assert mine.tolist() == pytest.approx(exact.tolist(), abs=2e-5)


def same_gradients(mine: Any, theirs: Any) -> None:
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert dict(mine.named_parameters()).keys() == expected.keys()
    for name, parameter in mine.named_parameters():
        if expected[name] is not None:  # None: an expert that no token chose
            largest = expected[name].abs().max()
            assert torch.allclose(parameter.grad, expected[name], rtol=2e-4, atol=2e-4 * largest), name


@pytest.mark.parametrize("family", FORMS)
def test_log_probs_and_gradients_are_those_of_the_models_own_logits(folders: dict[str, Path], family: str) -> None:
    student, model = Student(load_causal_lm(str(folders[family]), torch.float32), 3), plain_model(folders[family])
    expected = torch.cat([logprobs_of(model, row.prompt_ids, row.response_ids) for row in ROWS])
    (found,) = student(*BATCH.tokens)
    same(found.detach(), expected.detach())
    factors = torch.randn(sum(LENGTHS), generator=torch.Generator().manual_seed(1))
    (found @ factors).backward()
    (expected @ factors.double()).backward()
    same_gradients(student.causal_lm, model)


@pytest.mark.parametrize("family", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_form_is_measured_and_the_load_leaves_no_trace(
    folders: dict[str, Path], family: str, dtype: torch.dtype
) -> None:
    causal_lm = load_causal_lm(str(folders[family]), dtype)
    found, expected = logit_form(causal_lm), FORMS[family]
    assert (found.scale, found.cap or 0) == pytest.approx((expected.scale, expected.cap or 0), rel=1e-6)
    assert distance_from_own_forward(causal_lm) < 1e-4  # in float32, whatever the model is loaded as
    untouched = AutoModelForCausalLM.from_pretrained(str(folders[family]), dtype=dtype)
    for (name, parameter), other in zip(causal_lm.named_parameters(), untouched.parameters(), strict=True):
        assert parameter.dtype == other.dtype and torch.equal(parameter, other), name
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in causal_lm.modules())


@pytest.mark.parametrize("family", [*CAPPED, "granite", "cohere"])
def test_without_it_the_log_probs_would_be_others(folders: dict[str, Path], family: str) -> None:
    student = Student(load_causal_lm(str(folders[family]), torch.float32), 3)
    with torch.no_grad():
        right = student(*BATCH.tokens)[0]
        student.causal_lm.get_output_embeddings().form = LogitForm()
        assert (student(*BATCH.tokens)[0] - right).abs().max() > 0.05


@pytest.mark.parametrize(("family", "teacher"), [("gemma3", "granite"), ("cohere", "nanochat"), ("llama", "gemma4")])
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_divergences_compare_each_models_own_logits(
    folders: dict[str, Path], family: str, teacher: str, kind: str
) -> None:
    config = LearnerConfig(objective=kind, jsd_beta=0.3, dtype="float32", head_chunk_tokens=3)
    model, other = plain_model(folders[family]), plain_model(folders[teacher])
    student = Student(load_causal_lm(str(folders[family]), torch.float32), 3, divergence_of(config, VOCAB))
    frozen = FrozenModel(str(folders[teacher]), config, torch.device("cpu"))
    logprobs, found = student(*BATCH.tokens, teacher=frozen.distribution(BATCH.context_tokens))
    expected = torch.cat([row_divergence(kind, other, model, row, 0, 0.0) for row in ROWS])
    own = torch.cat([logprobs_of(model, row.prompt_ids, row.response_ids) for row in ROWS])
    same(found.detach(), expected.detach())
    same(logprobs.detach(), own.detach())
    factors = torch.rand(sum(LENGTHS), generator=torch.Generator().manual_seed(1))
    (found @ factors + logprobs.sum()).backward()
    (expected @ factors.double() + own.sum()).backward()
    same_gradients(student.causal_lm, model)


def test_a_frozen_models_log_probs_are_its_own(folders: dict[str, Path]) -> None:
    for family in ("gemma3", "granite"):
        frozen = FrozenModel(str(folders[family]), LearnerConfig(dtype="float32"), torch.device("cpu"))
        model = plain_model(folders[family])
        with torch.no_grad():
            expected = torch.cat([logprobs_of(model, row.prompt_ids, row.response_ids) for row in ROWS])
        same(frozen.logprobs(BATCH.tokens), expected)


@pytest.mark.parametrize("form", [LogitForm(0.3), LogitForm(1.0, 30.0), LogitForm(1.5, 2.0)])
def test_a_bfloat16_heads_gradient_is_the_exact_one(form: LogitForm) -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(300, 32, generator=random).bfloat16())
    hidden = torch.randn(20, 32, generator=random).bfloat16().requires_grad_()
    targets = torch.randint(300, (20,), generator=random)
    (found,) = LogprobHead(weight, 7, form=form)(hidden, targets)
    exact_hidden, exact_weight = (t.detach().double().requires_grad_() for t in (hidden, weight))
    logits = form.scale * (exact_hidden @ exact_weight.T)
    logits = logits if form.cap is None else form.cap * torch.tanh(logits / form.cap)
    expected = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    found.sum().backward()
    expected.sum().backward()
    for mine, exact in ((hidden, exact_hidden), (weight, exact_weight)):
        assert (mine.grad.double() - exact.grad).norm() < 0.01 * exact.grad.norm()


# What is refused


class ShiftedConfig(LlamaConfig):
    model_type = "shifted-llama"


class ShiftedForCausalLM(LlamaForCausalLM):
    """Something between hidden states and head that no table of ours can name."""

    config_class = ShiftedConfig

    def __init__(self, config: ShiftedConfig) -> None:
        super().__init__(config)
        self.lm_head.register_forward_pre_hook(lambda module, arguments: (arguments[0] * 1.05,))


class OffsetConfig(LlamaConfig):
    model_type = "offset-llama"


class OffsetForCausalLM(LlamaForCausalLM):
    """Something after the head that is neither a factor nor a cap."""

    config_class = OffsetConfig

    def forward(self, *arguments: Any, **named: Any) -> Any:
        output = super().forward(*arguments, **named)
        output.logits = output.logits + output.logits.square() / 64
        return output


for _config, _model in ((ShiftedConfig, ShiftedForCausalLM), (OffsetConfig, OffsetForCausalLM)):
    AutoConfig.register(_config.model_type, _config)
    AutoModelForCausalLM.register(_config, _model)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (ShiftedForCausalLM, "ShiftedForCausalLM, whose own log-probs differ from those of its hidden states and its"),
        (OffsetForCausalLM, r"OffsetForCausalLM, which makes .* expected logits that are scaled or soft-capped at"),
    ],
)
def test_anything_else_is_refused_as_the_model_loads(tmp_path: Path, made: Any, told: str) -> None:
    made(made.config_class(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=told):
        load_causal_lm(str(tmp_path), torch.bfloat16)


@pytest.mark.parametrize(
    ("family", "told"),
    [
        ("phi", "PhiForCausalLM: an lm_head with a bias is not supported"),
        ("bloom", "BloomForCausalLM, whose attention cannot be replaced"),
        ("mpt", "MptForCausalLM, whose attention cannot be replaced"),
        ("falcon", "FalconForCausalLM, whose attention cannot be replaced"),
        ("gptj", "GPTJForCausalLM, whose attention cannot be replaced"),
        ("stablelm", "StableLmAttention, which the packed rows do not reach"),
        ("llama4_text", r"Llama4ForCausalLM, which cannot be run on packed rows \(AttributeError: .*last_hidden_state"),
        ("minicpm3", r"MiniCPM3ForCausalLM, which cannot be run on packed rows \(RuntimeError: .*size of tensor"),
        ("deepseek_v32", r"DeepseekV32ForCausalLM, which cannot be run on packed rows \(TypeError: .*NoneType"),
        ("glm_moe_dsa", r"GlmMoeDsaForCausalLM, which cannot be run on packed rows \(TypeError: .*NoneType"),
    ],
)
def test_a_family_that_does_not_work_is_one_clear_line(tmp_path: Path, family: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        load_causal_lm(str(tiny(family, tmp_path)), torch.float32)
    assert "\n" not in str(error.value) and str(error.value).startswith("model.path: ")


def test_a_model_without_a_causal_head_is_refused(tmp_path: Path) -> None:
    AutoConfig.for_model("vit").save_pretrained(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="found 'vit', expected a causal language model"):
        load_causal_lm(str(tmp_path), torch.float32)
