"""Which actor gets which resource. Counts come from the recipe, devices from the cluster."""

from dataclasses import dataclass

from cluster.config import Recipe


@dataclass(frozen=True)
class Share:
    """What one actor asks Ray for."""

    num_cpus: float
    num_gpus: float


@dataclass(frozen=True)
class Plan:
    """One placement of one run."""

    device: str  # "cpu" or "cuda"
    transport: str
    student: Share
    teacher: Share
    learner: Share
    threads: int  # OpenMP threads of a CPU actor
    colocated: bool  # every actor in one bundle on one node


def make_plan(recipe: Recipe, cpus: float, gpus: float, nodes: int) -> Plan:
    """Colocated on what there is, or one GPU per engine worker and learner rank where there are enough.

    Raises:
        ValueError: the plan cannot fit; names the resources asked and found.
    """
    student, teacher, learner = recipe.student, recipe.teacher, recipe.learner
    actors = student.num_engines + teacher.num_engines + learner.num_ranks
    if gpus == 0:
        _check_cpu(recipe, cpus)
        share = Share(num_cpus=min(1.0, cpus / (actors + 1)), num_gpus=0)
        threads = max(1, int(cpus) // learner.num_ranks)
        return Plan("cpu", _cpu_transport(recipe, nodes), share, share, share, threads, colocated=True)
    workers = student.num_engines * student.tensor_parallel_size + teacher.num_engines * teacher.tensor_parallel_size
    asked = workers + learner.num_ranks
    if gpus >= asked:
        one = Share(num_cpus=1, num_gpus=1)
        return Plan(
            "cuda",
            "nccl" if recipe.weights.transport == "auto" else recipe.weights.transport,
            Share(1, student.tensor_parallel_size),
            Share(1, teacher.tensor_parallel_size),
            one,
            threads=0,
            colocated=False,
        )
    if gpus >= 1 and asked == 3:
        third = Share(num_cpus=1, num_gpus=0.33)
        transport = "ipc" if recipe.weights.transport == "auto" else recipe.weights.transport
        return Plan("cuda", transport, third, third, third, threads=0, colocated=True)
    raise ValueError(
        f"placement: asked {asked} GPUs ({workers} engine workers and {learner.num_ranks} learner ranks), found "
        f"{gpus:g}; expected that many, or one of each pool on a single GPU"
    )


def _check_cpu(recipe: Recipe, cpus: float) -> None:
    if recipe.weights.transport not in ("auto", "shm"):
        raise ValueError(
            f"weights.transport: found {recipe.weights.transport!r} on a cluster without GPUs, expected 'auto' or 'shm'"
        )
    if cpus < 1:
        raise ValueError(f"placement: asked 1 CPU, found {cpus:g}")


def _cpu_transport(recipe: Recipe, nodes: int) -> str:
    if nodes > 1:
        raise ValueError(
            f"weights.transport: found {nodes} nodes without GPUs, expected one: shared memory does not leave its host"
        )
    return "shm"
