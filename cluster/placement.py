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
    if gpus == 0:
        return _cpu_plan(recipe, cpus, nodes)
    workers = student.num_engines * student.tensor_parallel_size + teacher.num_engines * teacher.tensor_parallel_size
    asked = workers + learner.num_ranks
    if gpus >= asked:
        return Plan(
            device="cuda",
            transport=_transport(recipe, "nccl", "with a GPU for each engine worker and learner rank"),
            student=Share(1, student.tensor_parallel_size),
            teacher=Share(1, teacher.tensor_parallel_size),
            learner=Share(1, 1),
            threads=0,
            colocated=False,
        )
    if asked == 3:
        third = Share(num_cpus=1, num_gpus=0.33)
        transport = _transport(recipe, "ipc", "on one shared GPU")
        return Plan("cuda", transport, third, third, third, threads=0, colocated=True)
    raise ValueError(
        f"placement: asked {asked} GPUs ({workers} engine workers and {learner.num_ranks} learner ranks), found "
        f"{gpus:g}; expected that many, or one of each pool on a single GPU"
    )


def _cpu_plan(recipe: Recipe, cpus: float, nodes: int) -> Plan:
    """Every actor shares the cores of one node."""
    if cpus < 1:
        raise ValueError(f"placement: asked 1 CPU, found {cpus:g}")
    if nodes > 1:
        raise ValueError(
            f"weights.transport: found {nodes} nodes without GPUs, expected one: shared memory does not leave its host"
        )
    actors = recipe.student.num_engines + recipe.teacher.num_engines + recipe.learner.num_ranks
    share = Share(num_cpus=min(1.0, cpus / (actors + 1)), num_gpus=0)
    threads = max(1, int(cpus) // recipe.learner.num_ranks)
    transport = _transport(recipe, "shm", "on a cluster without GPUs")
    return Plan("cpu", transport, share, share, share, threads, colocated=True)


def _transport(recipe: Recipe, natural: str, where: str) -> str:
    """The one transport that works with a placement; a recipe may name it, but not another."""
    named = recipe.weights.transport
    if named not in ("auto", natural):
        raise ValueError(f"weights.transport: found {named!r} {where}, expected 'auto' or {natural!r}")
    return natural
