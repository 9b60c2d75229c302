"""samples.jsonl and trace.jsonl of a run's folder."""

from pathlib import Path

from cluster.observe.observer import Batch
from evidence.telemetry import append_samples, append_spans

SAMPLES, TRACE = "samples.jsonl", "trace.jsonl"


class FileSink:
    """Appends each batch's samples and spans."""

    name = "files"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, batch: Batch) -> None:
        append_samples(self._folder / SAMPLES, batch.samples)
        append_spans(self._folder / TRACE, batch.spans)
