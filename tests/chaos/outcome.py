"""What became of runs and of their faults, as a report has it."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fault:
    """after_s: the run began. noticed_s, back_s: from the fault to the driver's lines of it, and of what stands again;
    None where the run did not need what was lost any more. survived: a step was learned after it, or the run ended
    well. proven: each push after it says version, digest and canary; None where none was recorded."""

    target: str
    signal: str
    moment: str
    after_s: float
    noticed_s: float | None
    back_s: float | None
    survived: bool
    proven: bool | None


@dataclass(frozen=True)
class Outcome:
    """What became of one run. resumes: by the harness, after a fault that only a person mends: a driver's, or one amid
    the start. left_behind: the processes that outlived it, by their titles. commit: of the code that ran."""

    seed: int
    kind: str
    status: int
    resumes: int
    groups_once: bool
    trained_is_written: bool
    left_behind: list[str]
    wall_s: float
    faults: list[Fault]
    commit: str

    @property
    def is_well(self) -> bool:
        whole = self.status == 0 and self.groups_once and self.trained_is_written and not self.left_behind
        return whole and all(fault.survived and fault.proven is not False for fault in self.faults)


def read(path: Path) -> list[Outcome]:
    """Of a report."""
    found = [{key: one[key] for key in one if key != "well"} for one in json.loads(path.read_text())]
    return [Outcome(**one | {"faults": [Fault(**fault) for fault in one["faults"]]}) for one in found]
