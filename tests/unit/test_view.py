"""Heat maps: what each token shows, against float32 arithmetic on the shard's own columns."""

import html
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from transformers import PreTrainedTokenizerBase

from cluster.__main__ import main
from cluster.commands.decoding import decoder_of
from cluster.commands.view import Asked, pieces, view_run
from evidence.kinds import EVIDENCE_KINDS
from evidence.manifest import Manifest
from evidence.records import EvidenceRecord, RolloutRequest, Sample, ScoredSample
from evidence.rule import REGIONS, SOFT_WEIGHTS, TAU_KINDS, EvidenceConfig, judge, remask
from evidence.schema import to_table
from evidence.shards import write_shard
from evidence.sidecar import write_student
from evidence.view.heatmap import MAX_TOKENS, WHOLE_TOKENS, RowText, choose_shown, heatmap, shade, student_samples
from evidence.view.histogram import NUM_BINS, histogram
from tests.fakes import fake_run

RULE = EvidenceConfig()
METADATA = {"run_id": "r<1>", "mask_rule": RULE.to_json(), "model_id": "m", "weights_digest": "d", "code_version": "0"}


def record(index: int, length: int, guided: bool, rule: EvidenceConfig = RULE) -> EvidenceRecord:
    rng = np.random.default_rng(index)
    prompt = rng.integers(5, 900, 6).astype(np.int32)
    request = RolloutRequest(f"row-{index}", f"prompt-{index}", f"group-{index}", guided, "system", prompt, prompt)
    response = rng.integers(5, 900, length).astype(np.int32)
    sampler, context, plain = (-rng.exponential(2, length).astype(np.float32) for _ in range(3))
    sample = Sample(request, response, sampler, "stop", 0, 0)
    return replace(judge(ScoredSample(sample, context, plain, 0), rule), reward=0.5 if index == 0 else None)


def shard(records: list[EvidenceRecord], step: int = 3) -> pa.Table:
    return to_table(records, METADATA | {"step": str(step)})


def words(record: EvidenceRecord) -> RowText:
    return RowText("x", "x and r", tuple(f"t{t} " for t in range(len(record.evidence))))


def spans(page: str) -> list[tuple[str, str, str]]:
    """(class, hover text, token) of every token on the page."""
    found = re.findall(r'<span class="t ([^"]*)" title="([^"]*)">([^<]*)</span>', page)
    return [(css, html.unescape(hover), html.unescape(text)) for css, hover, text in found]


def figures(hover: str) -> list[float]:
    return [float(text.replace("−", "-")) for text in re.findall(r"[+−]?\d+\.?\d*", hover)]


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("rule", [RULE, EvidenceConfig(region="neg", tau=0.5), EvidenceConfig(soft="rlsd")])
def test_a_token_shows_its_own_figures(guided: bool, rule: EvidenceConfig) -> None:
    made = record(0, 9, guided)
    table = shard([made], step=0)
    found = spans(heatmap(table, {0: words(made)}, rule, student_samples(table)))
    scored = made.scored
    context, plain, sampler = (
        np.float64(values)
        for values in (scored.teacher_context_logprobs, scored.teacher_logprobs, scored.sample.sampler_logprobs)
    )
    assert [text for *_, text in found] == [f"t{t} " for t in range(9)]
    for t in (0, 4, 8):
        css, hover, _ = found[t]
        e = context[t] - plain[t]
        kept = e < -0.5 if rule.region == "neg" else e > 0
        weight = min(max(np.exp(e), 0.8), 1.2) if rule.soft == "rlsd" else 1.0
        own = [] if guided else [sampler[t], sampler[t] - context[t]]
        expected = [e, weight * kept, context[t], plain[t], sampler[t], *own]
        assert figures(hover) == pytest.approx(expected, abs=6e-3)
        assert css.endswith(" k") == kept
        assert css.startswith("p" if e > 0.1 else "n" if e < -0.1 else "z")


def test_only_a_plain_rollout_of_the_steps_own_policy_is_the_students_by_its_sampler() -> None:
    made = [record(0, 4, True), record(1, 3, False), record(2, 5, False), record(3, 2, False)]
    for index, versions in ((2, (0, 1)), (3, (0, 0))):
        sample = replace(made[index].scored.sample, policy_version_min=versions[0], policy_version_max=versions[1])
        made[index] = replace(made[index], scored=replace(made[index].scored, sample=sample))
    for step, expected in ((0, ["row-1", "row-3"]), (1, [])):
        assert list(student_samples(shard(made, step))) == expected
    assert np.array_equal(student_samples(shard(made, 0))["row-1"], made[1].scored.sample.sampler_logprobs)


@pytest.mark.parametrize("guided", [True, False])
def test_delta_is_of_the_students_own_log_prob(guided: bool) -> None:
    made = record(0, 3, guided)
    student = np.array([-1.0, -2.0, -3.0], np.float32)
    table, texts = shard([made]), {0: words(made)}
    delta = student - made.scored.teacher_context_logprobs
    for t, (_, hover, _) in enumerate(spans(heatmap(table, texts, RULE, {"row-0": student}))):
        assert figures(hover)[5:] == pytest.approx([student[t], delta[t]], abs=6e-3)
    assert "delta" not in spans(heatmap(table, texts, RULE))[0][1]
    with pytest.raises(ValueError, match="rollout row-0: found 2 log-probs of the student, expected 3"):
        heatmap(table, texts, RULE, {"row-0": student[:2]})


@pytest.mark.parametrize(
    ("evidence", "css"),
    [
        (0.0, "z"), (0.1, "z"), (-0.1, "z"), (0.11, "p1"), (-0.11, "n1"), (0.5, "p1"), (0.51, "p2"), (1.0, "p2"),
        (-1.01, "n3"), (2.0, "p3"), (2.01, "p4"), (-99.0, "n4"),
    ],
)  # fmt: skip
def test_shades_grow_with_evidence(evidence: float, css: str) -> None:
    assert shade(evidence) == css


def test_the_page_says_which_mask_and_what_it_keeps() -> None:
    made = [record(0, 9, True), record(1, 5, False)]
    texts = dict(enumerate(map(words, made)))
    page = heatmap(shard(made), texts, RULE)
    evidence = np.concatenate([made[0].evidence, made[1].evidence])
    assert "kept: pos (e &gt; 0)" in page and "the run itself" not in page
    assert f'<td class="big">{(evidence > 0).mean():.2f}</td>' in page
    assert f"kept {(made[0].evidence > 0).sum()} of 9" in page and "reward 0.5" in page
    other = heatmap(shard(made), texts, EvidenceConfig(region="near_zero", near_zero=1.0))
    assert "kept: near-zero (|e| ≤ 1); the run itself kept pos (e &gt; 0)" in other
    assert f'<td class="big">{(np.abs(evidence) <= 1).mean():.2f}</td>' in other


def test_the_histogram_draws_each_groups_shares_and_fills_what_is_kept() -> None:
    guided = np.array([-9.0, -3.9, 0.0, 0.05, 0.1, 3.99, 8.0, 8.0], np.float32)
    plain = np.array([1.0, -1.0], np.float32)
    drawn = histogram({"guided": (guided, guided > 0), "plain": (plain, plain > 9)})
    low, high, top, bottom = drawn.axes

    def heights(path: str) -> list[float]:
        """[B] shares, by the stairs of an outline that starts and ends on the axis."""
        places = [tuple(map(float, stair)) for stair in re.findall(r"V([\d.]+)H([\d.]+)", path)]
        edges = np.linspace(low, high, NUM_BINS + 1)[1:]
        assert [x for _, x in places] == pytest.approx(list(edges), abs=0.06)
        return [(bottom - y) / (bottom - top) for y, _ in places]

    counts, kept = np.zeros(NUM_BINS), np.zeros(NUM_BINS)
    counts[[0, 20, 39]] = (2, 3, 3)  # the outer bins hold what is beyond, bin 20 begins at 0
    kept[[20, 39]] = (2, 3)
    own = next(series for series in drawn.series if series.label == "guided")
    other = next(series for series in drawn.series if series.label == "plain")
    assert heights(own.outline) == pytest.approx(list(counts / 8 / 0.5), abs=2e-3)  # 0.5: the highest bin of all
    assert heights(own.kept) == pytest.approx(list(kept / 8 / 0.5), abs=2e-3)
    assert [bin for bin, height in enumerate(heights(other.outline)) if height] == [15, 25]
    assert not any(heights(other.kept))
    assert [text for _, text in drawn.y_ticks] == ["0%", "20%", "40%"]
    assert [text for _, text in drawn.x_ticks] == ["−4", "−3", "−2", "−1", "0", "1", "2", "3", "4"]


@pytest.mark.parametrize("groups", [{}, {"plain": (np.zeros(0, np.float32), np.zeros(0, np.bool_))}])
def test_a_histogram_of_nothing_is_an_empty_one(groups: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    drawn = histogram(groups)
    assert len(drawn.series) == len(groups) and drawn.y_ticks[-1][1] == "1%"


def test_the_pictures_of_a_page_are_sound() -> None:
    made = [record(0, 9, True), record(1, 5, False)]
    (picture,) = re.findall(r"<svg.*?</svg>", heatmap(shard(made), dict(enumerate(map(words, made))), RULE), re.DOTALL)
    labels = [text.text for text in ElementTree.fromstring(picture).iter("text")]
    assert labels[-2:] == ["guided", "plain"] and "e, nats" in labels


def test_everything_is_escaped() -> None:
    made = record(0, 3, False)
    nasty = '<script>alert("&")</script>'
    page = heatmap(shard([made]), {0: RowText(nasty, nasty, (nasty, "a\nb", ""))}, RULE)
    assert page.count("<script>") == 1 and "alert" not in page[page.index("<script>") :]
    assert "r&lt;1&gt;" in page and "r<1>" not in page
    assert "a⏎\nb" in page and ">·</span>" in page
    assert next(text for *_, text in spans(page)) == nasty


def test_the_page_is_whole_and_the_same_each_time() -> None:
    made = record(0, 3, True)
    page = heatmap(shard([made]), {0: words(made)}, RULE)
    assert page == heatmap(shard([made]), {0: words(made)}, RULE)
    assert not re.findall(r'src=|href="(?!#)|@import|url\((?!#)|<link', page)


def test_a_row_needs_a_string_for_each_token() -> None:
    made = record(0, 3, True)
    with pytest.raises(ValueError, match="rollout row-0: found 2 token strings, expected 3"):
        heatmap(shard([made]), {0: RowText("", "", ("a", "b"))}, RULE)


def test_a_long_rollout_is_cut_and_an_empty_one_is_shown() -> None:
    made = [record(0, MAX_TOKENS + 7, True), record(1, 0, False)]
    page = heatmap(shard(made), dict(enumerate(map(words, made))), RULE)
    assert len(spans(page)) == MAX_TOKENS
    assert "and 7 more, which no search finds here:\n<code>edge-opd view RUN --step 3 --prompt prompt-0</code>" in page
    assert "kept 0 of 0, mean evidence -" in page
    whole = heatmap(shard(made), dict(enumerate(map(words, made))), RULE, most=None)
    assert len(spans(whole)) == MAX_TOKENS + 7 and "more" not in whole


def of_prompt(index: int, prompt: str, reward: float | None = None, length: int = 6) -> EvidenceRecord:
    """Of which every second one is guided."""
    made = record(index, length, index % 2 == 0)
    request = replace(made.scored.sample.request, prompt_id=prompt)
    scored = replace(made.scored, sample=replace(made.scored.sample, request=request))
    return replace(made, scored=scored, reward=reward)


def test_of_a_large_step_some_prompts_are_shown_whole_and_the_page_names_the_others() -> None:
    """Eight prompts of four rollouts, of which the page has room for three."""
    length = WHOLE_TOKENS // 8
    assert length > MAX_TOKENS
    made = [of_prompt(index, f"p{index // 4}", None, length) for index in range(32)]
    shown = choose_shown(shard(made))
    assert shown == [0, 2, 16, 18, 28, 30, 1, 3, 17, 19, 29, 31]  # guided first
    page = heatmap(shard(made), {row: words(made[row]) for row in shown}, RULE)
    assert "12 of 32 rollouts" in page and "edge-opd view RUN --step 3 --prompt P" in page
    assert "5 prompts that are left out" in page and "p1 · p2 · p3 · p5 · p6" in page
    assert choose_shown(shard(made), "p3") == [12, 14, 13, 15]
    assert choose_shown(shard(made[:8])) == [0, 2, 4, 6, 1, 3, 5, 7]
    assert "left out" not in heatmap(shard(made[:8]), {row: words(made[row]) for row in range(8)}, RULE)
    assert choose_shown(shard(made[:0])) == [] and choose_shown(shard(made[:1])) == [0]


@pytest.mark.parametrize("text", ["Hello there, I am Kestrel.", "naïve café 🤖🦅 日本語", "a\n\n  b", ""])
def test_pieces_join_to_the_text(text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = pieces(ids, tokenizer.decode)
    assert len(found) == len(ids)
    assert "".join(found) == text
    assert not any("�" in piece for piece in found)


def test_a_character_that_is_cut_off_is_kept_visible(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("🦅", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    assert pieces(ids[:-1], tokenizer.decode)[-1].endswith("�")


def test_pieces_keep_spaces_that_a_tokenizer_only_writes_between_tokens() -> None:
    assert pieces([1, 2, 3], lambda ids: " ".join(f"w{i}" for i in ids)) == ["w1", " w2", " w3"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two steps whose shards are in place."""
    folder = fake_run(tmp_path / "robin", {0: {"selfname": (0, 4)}})
    manifest = Manifest(folder / "manifest.jsonl")
    for step in (0, 1):
        table = shard([record(2 * step, 4, True), record(2 * step + 1, 3, False)], step)
        manifest.append_written(write_shard(table, str(folder / "shards"), f"step-{step}.arrow"))
    return folder


def test_the_command_writes_the_last_step(
    run: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.save_pretrained(run / "export")
    out = tmp_path / "pages" / "view.html"
    assert main(["view", str(run), "--region", "all", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = out.read_text()
    assert "step 2 (<code>--step 1</code>:" in page and "2 of 2 rollouts" in page and "every token" in page
    response = record(2, 4, True).scored.sample.response_ids
    assert "".join(text for *_, text in spans(page)[:4]) == tokenizer.decode(response).replace("\n", "⏎\n")
    assert all(css.endswith(" k") for css, *_ in spans(page))


@pytest.mark.parametrize("sampler", ["student", "teacher"])
def test_the_command_takes_delta_from_the_learner_or_from_the_students_engine(
    sampler: str, run: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(run / "export")
    config = run / "config.toml"
    config.write_text(config.read_text().replace('sampler = "student"', f'sampler = "{sampler}"'))

    def deltas(step: int) -> list[bool]:
        """Whether they are there, of the guided rollout's 4 tokens and of the plain one's 3."""
        page = view_run(run, step, Asked(), tmp_path / "v.html").read_text()
        return ["delta" in hover for _, hover, _ in spans(page)]

    assert deltas(0) == [False] * 4 + [sampler == "student"] * 3
    assert not any(deltas(1))  # sampled by version 0
    write_student({"row-2": np.zeros(4, np.float32)}, str(run / "student"), 1)
    assert not any(deltas(1))  # not of this shard, which is not trained
    manifest = Manifest(run / "manifest.jsonl")
    manifest.append_trained(list(manifest.written())[1], 1)
    assert deltas(1) == [True] * 4 + [False] * 3


def test_a_moved_run_is_still_found(run: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(run / "export")
    moved = run.rename(tmp_path / "moved")
    assert "version 0 into 1: 2 of 2 rollouts" in view_run(moved, 0, Asked(), tmp_path / "v.html").read_text()


def outer(evidence: np.ndarray, config: EvidenceConfig) -> np.ndarray:
    return np.abs(evidence) > np.float32(config.near_zero)


@pytest.mark.parametrize(
    ("table", "key", "new", "shown"),
    [
        (REGIONS, "region", outer, "mine (tau 0, tau_kind value, near_zero 0.1)"),
        (TAU_KINDS, "tau_kind", lambda evidence, tau: np.float32(np.median(evidence)), "pos (tau 0, tau_kind mine, "),
        (SOFT_WEIGHTS, "soft", SOFT_WEIGHTS["rlsd"], "pos (e &gt; 0)"),
        (EVIDENCE_KINDS, "kind", EVIDENCE_KINDS["teacher_contrast"], "pos (e &gt; 0)"),
    ],
)
def test_a_name_that_is_new_in_a_table_of_the_rule_is_known_to_each_command(
    table: dict[str, Any], key: str, new: Any, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """As CONTRIBUTING says: one line there, and nothing else."""
    monkeypatch.setitem(table, "mine", new)
    rule = replace(RULE, **{key: "mine"})
    folder = fake_run(tmp_path / "run", {0: {"selfname": (0, 4)}}, evidence={key: "mine"})
    made = [record(0, 9, True, rule), record(1, 5, False, rule)]
    table_ = to_table(made, METADATA | {"step": "0", "mask_rule": rule.to_json()})
    info = write_shard(table_, str(folder / "shards"), "step-0.arrow")
    Manifest(folder / "manifest.jsonl").append_written(info)
    assert main(["shards", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    kept = remask(np.concatenate([one.evidence for one in made]), rule)
    assert found["mask_rule"][key] == "mine" and found["all"]["all"]["kept"] == pytest.approx(kept.mean())
    assert main(["view", str(folder), "--out", str(tmp_path / "v.html")]) == 0
    page = (tmp_path / "v.html").read_text()
    assert shown in page and [css.endswith(" k") for css, *_ in spans(page)] == kept.tolist()
    assert main(["report", str(folder), "--out", str(tmp_path / "report")]) == 0


def test_another_mask_may_be_a_new_region(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(REGIONS, "mine", outer)
    assert main(["view", str(run), "--region", "mine", "--out", str(tmp_path / "v.html")]) == 0
    assert "mine (tau 0, " in (tmp_path / "v.html").read_text()
    capsys.readouterr()
    assert main(["shards", str(run), "--region", "mine", "--json"]) == 0
    made = np.concatenate([record(index, length, index % 2 == 0).evidence for index, length in enumerate((4, 3, 4, 3))])
    found = json.loads(capsys.readouterr().out)["all"]["all"]["kept"]
    assert found == pytest.approx(float((np.abs(made) > 0.1).mean()))


# Tokens as text


def test_tokenizers_alone_decodes_as_transformers_does(
    run: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.save_pretrained(run / "export")
    monkeypatch.setitem(sys.modules, "transformers", None)
    alone = decoder_of(run, "default", follow=False)
    assert not alone.note
    ids = list(range(0, len(tokenizer), 7))
    expected = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert alone.decode(ids) == expected
    for text in ("naïve café 🤖🦅 日本語", " a\n\n  b <|im_start|>", ""):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert pieces(ids, alone.decode) == pieces(ids, tokenizer.decode)


def test_a_tokenizer_without_a_tokenizer_json_is_left_to_transformers(run: Path) -> None:
    """In the older layout of GPT-2's family; Ġ is a space."""
    (run / "export").mkdir()
    vocabulary = {token: index for index, token in enumerate(("a", "b", "Ġ", "ab", "Ġab"))}
    (run / "export" / "vocab.json").write_text(json.dumps(vocabulary))
    (run / "export" / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n")
    (run / "export" / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    found = decoder_of(run, "default", follow=False)
    assert (found.decode([3, 4, 0, 2, 1]), found.note) == ("ab aba b", "")


def test_a_note_is_one_plain_line_whatever_a_run_calls_its_model(run: Path) -> None:
    note = decoder_of(run, "some/\x1b]0;mine\x07model\nedge-opd: all is well", follow=False).note
    assert note.endswith("reads the tokenizer of its model, some/ ]0;mine model edge-opd: all is well")


def test_without_either_the_ids_are_shown_and_what_is_missing_is_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGE_OPD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["view", str(run), "--out", str(tmp_path / "v.html")]) == 0
    error = capsys.readouterr().err
    place = tmp_path / "cache" / "SmolLM2-135M-Instruct"
    reason = f"found no tokenizer.json in {place}, with which `pip install tokenizers` shows text"
    note = f"token ids instead of text: {reason}"
    assert error == f"edge-opd: {note}\n"
    page = (tmp_path / "v.html").read_text()
    assert f"<strong>{note}.</strong>" in page
    response = record(2, 4, True).scored.sample.response_ids
    assert [text.strip() for *_, text in spans(page)[:4]] == [str(token) for token in response]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "7"], "--step: found 7, expected a step from 0 to 1"),
        (["--region", "some"], "evidence.region: found 'some'"),
        (["--tau", "nan"], "evidence.tau: found nan"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["view", str(run), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_without_a_run_or_shards_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(tmp_path)]) == 2
    assert "found no config.toml, expected a run directory" in capsys.readouterr().err
    assert main(["view", str(tmp_path / "none")]) == 2
    assert "none: found no such folder, expected a run directory" in capsys.readouterr().err
    assert main(["view", str(fake_run(tmp_path / "empty", {0: {"selfname": (0, 4)}}))]) == 2
    assert "found no shards in manifest.jsonl" in capsys.readouterr().err
