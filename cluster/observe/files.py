"""samples.jsonl and trace.jsonl of a run's folder, and where what is made of them goes."""

from pathlib import Path

from cluster.observe.observer import Batch
from evidence.telemetry import append_samples, append_spans

SAMPLES, TRACE = "samples.jsonl", "trace.jsonl"


def place_for(path: Path) -> Path:
    """The path of a file that a command writes, whose folder is made. ValueError where it is a folder itself."""
    if path.is_dir():
        raise ValueError(f"--out: found the folder {path}, expected a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


class FileSink:
    """Appends each batch's samples and spans."""

    name = "files"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, batch: Batch) -> None:
        append_samples(self._folder / SAMPLES, batch.samples)
        append_spans(self._folder / TRACE, batch.spans)
