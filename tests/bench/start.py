"""What a start costs: from the command `edge-opd run` to the first answer that its engines are asked for, over a bare
engine's, to its first token. Each is a fresh process, in turns.

    python -m tests.bench.start [--rounds 1] [--set table.key=value ...]

A tiny random model with the default one's tokenizer. Processor seconds are those of every process that the command
started, as far as they were seen within `LOOK_S` of their end; beside other work they say more than seconds do.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cluster.config import load_recipe
from cluster.default_model import prepare_default_model
from tests.bench.figures import Figure
from tests.fakes import tiny_model
from tests.runs import RECIPE, ROOT, small_arguments

LOOK_S = 0.2
DEADLINE_S = 900.0
# What engines do is asked for every half a second: a run of one step would otherwise end before.
SETTINGS = ("run.steps=1", "student.window=512", "teacher.window=512", "observe.every_s=0.5")
ANSWERS = ("sample", "probe")  # spans of an engine


@dataclass
class Family:
    """The processor seconds of a process and of all that it starts, look by look.

    seen: (Unix time, processor seconds until then) of each look.
    """

    process: psutil.Process
    seen: list[tuple[float, float]] = field(default_factory=list)
    _spent: dict[psutil.Process, float] = field(default_factory=dict)

    def look(self) -> None:
        """Adds what every process of the family has spent by now."""
        try:
            everyone = [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in everyone:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            self._spent[process] = times.user + times.system
        self.seen.append((time.time(), sum(self._spent.values())))

    def spent(self, until: float) -> float:
        """Processor seconds until this moment."""
        return max((seconds for at, seconds in self.seen if at <= until), default=0.0)


def watched(command: list[str]) -> tuple[float, Family, str]:
    """Runs a command to its end: when it began, what it spent, and what it said."""
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    begun = time.time()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=said, stderr=subprocess.STDOUT)
        family = Family(psutil.Process(process.pid))
        while process.poll() is None:
            family.look()
            if time.time() - begun > DEADLINE_S:
                process.kill()
            time.sleep(LOOK_S)
        said.seek(0)
        output = said.read()
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}\n{output[-3000:]}")
    return begun, family, output


def run(folder: Path, model: Path, settings: list[str]) -> tuple[float, float]:
    """Seconds and processor seconds from the command to the first answer that an engine is asked for."""
    arguments = small_arguments(folder, f"model.path={model}", *SETTINGS, *settings)
    begun, family, _ = watched([sys.executable, "-m", "cluster", *arguments])
    spans = [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]
    first = min(span["begin"] for span in spans if "engine" in span["lane"] and span["name"] in ANSWERS)
    return first - begun, family.spent(first)


def bare(model: Path) -> tuple[float, float]:
    """The same of an engine alone, to its first token."""
    begun, family, said = watched([sys.executable, "-m", "tests.bench.start", "--bare", str(model)])
    first = json.loads(said.splitlines()[-1])
    return first - begun, family.spent(first + LOOK_S)


def measure_bare(model: str) -> None:
    """One token of vLLM's own engine in this process; prints when it was there."""
    from rollout.engine_arguments import engine_arguments
    from rollout.vllm_quirks.environment import enter_cpu_environment

    config = load_recipe(RECIPE, [item for item in SETTINGS if item.startswith("student.")]).student
    enter_cpu_environment(config)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM, SamplingParams

    llm = LLM(**engine_arguments(model, config, "cpu"))
    llm.generate([{"prompt_token_ids": [5, 6, 7]}], SamplingParams(max_tokens=1, detokenize=False), use_tqdm=False)
    print(f"\n{time.time()}", flush=True)
    time.sleep(2 * LOOK_S)  # so that it is looked at once more
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    parser.add_argument("--bare", metavar="MODEL", help="an engine alone, in this process")
    arguments = parser.parse_args()
    if arguments.bare:
        return measure_bare(arguments.bare)
    found = []
    with tempfile.TemporaryDirectory() as name:
        tokenizer = prepare_default_model()
        model = tiny_model(Path(name) / "model", tokenizer_from=tokenizer, vocab=49152, hidden_size=128, head_dim=32)
        for turn in range(arguments.rounds):
            found.append((run(Path(name) / f"run-{turn}", model, arguments.set), bare(model)))
    for what, place in (("seconds", 0), ("processor seconds", 1)):
        ours, alone = ([pair[who][place] for pair in found] for who in (0, 1))
        Figure(f"start of a run, {what}", statistics.median(ours), "", f"{min(ours):.3g} to {max(ours):.3g}").say()
        Figure(f"start of a bare engine, {what}", statistics.median(alone)).say()
        ratio = statistics.median(one / other for one, other in zip(ours, alone, strict=True))
        Figure(f"start over a bare engine's, {what}", ratio, "<= 1.3" if what == "seconds" else "").say()
    return None


if __name__ == "__main__":
    main()
