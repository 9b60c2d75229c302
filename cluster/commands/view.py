"""`edge-opd view`: a heat map of one step's rollouts. Decoding the tokens is all that needs a tokenizer."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa

from cluster.commands.decoding import Decode, Decoder, decoder_of
from cluster.config import Recipe
from cluster.dashboard.views import FOLDER, list_views
from cluster.observe.files import place_for
from cluster.resolved import read_resolved
from cluster.run.rundir import RunDir
from evidence.columns import flat_column
from evidence.manifest import Manifest
from evidence.records import Floats, ShardInfo
from evidence.rule import EvidenceConfig
from evidence.schema import shard_metadata
from evidence.shards import read_shard, shard_of
from evidence.sidecar import read_student
from evidence.view.heatmap import MAX_TOKENS, Neighbours, RowText, choose_shown, heatmap, student_samples

LONGEST = 80  # characters of what is asked, in a name: a file system takes 255 bytes


@dataclass(frozen=True)
class Asked:
    """What of a step is shown: another mask than the run's own, or one prompt's rollouts. follow: also from what is
    named in the run's folder and not in it."""

    tau: float | None = None
    region: str | None = None
    prompt_id: str | None = None
    follow: bool = False

    @property
    def apart(self) -> str:
        """What keeps its pages apart from the run's own, at the end of a name; empty for those."""
        asked = {"tau": self.tau, "region": self.region, "prompt": self.prompt_id}
        return "".join(f"-{key}-{_short(str(value))}" for key, value in asked.items() if value is not None)


def _short(text: str) -> str:
    """As a part of a file's name. What is cut is longer than LONGEST still, so that it is no other text's name."""
    name = quote(text, safe="")
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}-{sha256(text.encode()).hexdigest()[:12]}"


def view_run(run: Path, step: int | None, asked: Asked, out: Path | None) -> Path:
    """Writes the page of a run's step (default: its last) and returns its path.

    Raises:
        ValueError: not a run, no such step or prompt, a damaged shard, or a region that does not exist.
    """
    recipe, info = read_resolved(run).recipe, _shard_of(run, step)
    path = place_for(out or Path(_name(run, info.step, asked)))
    # Of the steps beside it, those whose pages lie there already.
    names = ["" if out else _name(run, info.step + way, asked) for way in (-1, 1)]
    before, after = (name if name and (path.parent / name).is_file() else "" for name in names)
    decoder = _decoder(run, recipe, asked.follow)
    path.write_text(_page(run, recipe, info, asked, decoder, Neighbours(before, after)), encoding="utf-8")
    return path


def _name(run: Path, step: int, asked: Asked) -> str:
    return f"view-{run.resolve().name}-step-{step:06d}{asked.apart}.html"


def view_all(run: Path, asked: Asked, out: Path | None) -> Path:
    """Writes a page for each of a run's steps, each linked to those beside it (default: RUN/view, where the dashboard
    finds them, also one that was written before; of another mask or of one prompt a folder beside it), and returns the
    folder. ValueError as `view_run`."""
    recipe, infos = read_resolved(run).recipe, list(_shards(run).values())
    folder, decoder = out or run / f"{FOLDER}{asked.apart}", _decoder(run, recipe, asked.follow)
    names = ["", *(f"step-{info.step:06d}.html" for info in infos), ""]
    for place, info in enumerate(infos):
        page = _page(run, recipe, info, asked, decoder, Neighbours(names[place], names[place + 2]))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[place + 1]).write_text(page, encoding="utf-8")
    if not out and not asked.apart:
        list_views(run)
    return folder


def _decoder(run: Path, recipe: Recipe, follow: bool) -> Decoder:
    decoder = decoder_of(run, recipe.model.path, follow)
    if decoder.note:
        print(f"edge-opd: {decoder.note}", file=sys.stderr)
    return decoder


def _page(run: Path, recipe: Recipe, info: ShardInfo, asked: Asked, decoder: Decoder, beside: Neighbours) -> str:
    table = read_shard(shard_of(run, info, asked.follow), expected=info)
    rule = EvidenceConfig.from_json(shard_metadata(table)["mask_rule"])
    tau, region = asked.tau, asked.region
    rule = replace(rule, tau=rule.tau if tau is None else tau, region=rule.region if region is None else region)
    student = student_samples(table) if recipe.rollout.sampler == "student" else {}
    texts = {row: _text(table, row, decoder.decode) for row in choose_shown(table, asked.prompt_id)}
    most = MAX_TOKENS if asked.prompt_id is None else None
    return heatmap(table, texts, rule, student | _learner_logprobs(run, info), decoder.note, beside, most)


def _shards(run: Path) -> dict[int, ShardInfo]:
    """The shards that stand, by step."""
    by_step = {info.step: info for info in Manifest(run / "manifest.jsonl").written().values()}
    if not by_step:
        raise ValueError(f"{run}: found no shards in manifest.jsonl, expected those of at least one step")
    return dict(sorted(by_step.items()))


def _shard_of(run: Path, step: int | None) -> ShardInfo:
    by_step = _shards(run)
    chosen = max(by_step) if step is None else step
    if chosen not in by_step:
        raise ValueError(f"{run}: --step: found {chosen}, expected a step from {min(by_step)} to {max(by_step)}")
    return by_step[chosen]


def _learner_logprobs(run: Path, info: ShardInfo) -> dict[str, Floats]:
    """Of the rollouts that the learner ran; none of a shard that was written again since."""
    trained = info.uri in Manifest(run / "manifest.jsonl").trained()
    return read_student(str(RunDir(run).student), info.step) if trained else {}


def _text(table: pa.Table, row: int, decode: Decode) -> RowText:
    ids = {}
    for name in ("prompt_ids", "context_prompt_ids", "response_ids"):
        values, offsets = flat_column(table, name)
        ids[name] = values[offsets[row] : offsets[row + 1]].tolist()
    return RowText(
        decode(ids["prompt_ids"]), decode(ids["context_prompt_ids"]), tuple(pieces(ids["response_ids"], decode))
    )


def pieces(ids: Sequence[int], decode: Decode) -> list[str]:
    """Each token's own text, so that joined they are the decoded response. A token that ends inside a character has
    none: the one that completes it has the whole character."""
    texts: list[str] = []
    before, start = 0, 0  # ids[before:start] is what was last completed: some tokenizers need it to place spaces
    for end in range(1, len(ids) + 1):
        text = decode(ids[before:end])[len(decode(ids[before:start])) :]
        if text.endswith("�") and end < len(ids):
            texts.append("")
            continue
        texts.append(text)
        before, start = start, end
    return texts
