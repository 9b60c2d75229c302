"""RUN/inputs.json: what a run was begun with, by content: a resume with other prompts or another model under the same
name is refused.

Of a model's folder: its config, tokenizer, template and index by their content. Its weights, which may be 100 GB, and
of which only those count that are loaded, by their size, by the header that names their tensors, and by samples: blocks
at equal distances, and the first, the middle and the last block of each tensor. That is some thousand reads of 4 KiB.
It sees weights that were trained, merged or replaced, be it one tensor, and whatever else changed in one piece of more
than 1/64 of a file; not a few bytes within a tensor. What a frozen teacher then says of a text is compared as well
(`cluster.run.teacher_check`). Of a hub's model: the commit.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.config import TASK_PATHS, Recipe
from cluster.models import hub_id, is_hub_id, pinned
from evidence.files import file_sha256, write_whole
from evidence.lines import from_json
from rollout.tasks.base import Task

Pins = dict[str, str]  # "KEY: FILE" to a digest, or a commit
METADATA = "__metadata__"  # of a safetensors file, which is no tensor
BLOCK, SPREAD = 4096, 64  # bytes of a sample, and how many there are at equal distances of a file of weights


def pins_of(recipe: Recipe, model: str, task: Task) -> Pins:
    """What the inputs of a run are now. model: the student's, resolved."""
    files = {f"{table}.{key}": getattr(getattr(recipe, table), key) for table, key in TASK_PATHS}
    pins = {f"{key}: {path}": file_sha256(Path(path)) for key, path in files.items() if path}
    if recipe.task.prompts_file:  # with the files that its rows name
        asked = task.training_prompts()
        wordings = {prompt.prompt_id: prompt.wordings for prompt in asked if prompt.wordings}
        prompts = hashlib.sha256(f"{asked!r}{wordings or ''}".encode()).hexdigest()
        pins[f"task.prompts_file: {recipe.task.prompts_file}: its prompts"] = prompts
    student = recipe.model.path if is_hub_id(recipe.model.path) else model
    models = {"model.path": student, "teacher.path": recipe.teacher.path}
    return pins | {f"{key}: {name}": pin for key, path in models.items() if path for name, pin in _of_model(path, key)}


def _of_model(path: str, key: str) -> Iterator[tuple[str, str]]:
    if is_hub_id(path):
        settled = hub_id(pinned(path, key), key)
        yield settled.name, settled.commit
        return
    folder = Path(path)
    if not folder.is_dir():
        return
    from learner.folder import SETTLES, engines_files  # which a laptop that reads a run's folder cannot import

    for pattern in SETTLES:
        yield from ((str(file), file_sha256(file)) for file in sorted(folder.glob(pattern)) if file.is_file())
    yield from ((str(file), _head(file)) for file in engines_files(folder, key))


def _head(path: Path) -> str:
    """Of a file of weights: its size, its header where it is a safetensors file, and samples."""
    size, samples = path.stat().st_size, hashlib.sha256()
    header = _header(path, size)
    with path.open("rb") as file:
        for place in sorted({*range(0, size, max(BLOCK, -(-size // SPREAD))), *_of_tensors(path, header)}):
            file.seek(place)
            samples.update(file.read(BLOCK))
    header_sha256 = hashlib.sha256(header).hexdigest()
    return f"{size} bytes, header {header_sha256}, samples {samples.hexdigest()}"


def _header(path: Path, size: int) -> bytes:
    """Of a safetensors file what names its tensors, else its first bytes. ValueError for a file that is none: no more
    of it is read than there is."""
    with path.open("rb") as file:
        first = file.read(8)
        if path.suffix != ".safetensors":
            return first
        length = int.from_bytes(first, "little")
        if len(first) < 8 or length > size - 8:
            raise ValueError(
                f"{path}: found {size:,} bytes that are no whole safetensors file, expected weights: copy or download "
                "it again (`git lfs pull` where it is a pointer), or remove it where it is no part of the model"
            )
        return file.read(length)


def _of_tensors(path: Path, header: bytes) -> Iterator[int]:
    """Where the first, the middle and the last block of each tensor begin."""
    if path.suffix != ".safetensors":
        return
    try:
        tensors = {name: tensor["data_offsets"] for name, tensor in json.loads(header).items() if name != METADATA}
        places = [(8 + len(header) + int(begin), 8 + len(header) + int(end)) for begin, end in tensors.values()]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: found a header that names no tensors ({error!r}), expected a safetensors file"
        ) from None
    for begin, end in places:
        yield from (max(0, place) for place in (begin, (begin + end) // 2, max(begin, end - BLOCK)))


def pin(path: Path, pins: Pins, resume: bool, notes: Sequence[str] = ()) -> None:
    """Writes `pins` at a run's start, and where an older version wrote none; compares them at a resume. notes: what the
    start says of the prompts, for the page.

    Raises:
        ValueError: an input is another than at the start; names its key and its file.
    """
    if not (resume and path.is_file()):
        write_whole(path, json.dumps({"format": 1, "inputs": pins, "notes": list(notes)}, indent=1) + "\n")
        return
    begun = read_pins(path)
    for name in [name for name in [*begun, *pins] if name in pins or not _is_idle(name)]:
        if not _is_same(begun.get(name), pins.get(name)):
            raise ValueError(
                f"{name}: found {pins.get(name, 'nothing')}, expected {begun.get(name, 'nothing')} as when the run "
                "began: it goes on with the inputs that it began with"
            )


def _is_idle(name: str) -> bool:
    """Weights that stand there and nothing loads, which older versions pinned too."""
    file = Path(name.partition(": ")[2])
    return file.suffix in (".safetensors", ".bin") and file.is_file()


def _is_same(begun: str | None, now: str | None) -> bool:
    """Older versions said less of a file of weights."""
    return begun == now or (begun is not None and now is not None and now.startswith(f"{begun}, samples "))


def read_pins(path: Path) -> Pins:
    """ValueError names a file that is none."""
    try:
        return dict(from_json(path.read_bytes())["inputs"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: found no inputs of a run ({error}), expected what its start wrote") from None
