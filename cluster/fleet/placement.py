"""Which actor gets which resource. Counts come from the recipe, devices from the cluster's nodes."""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.config import Recipe
from evidence.require import require

POOLS = ("student", "teacher", "learner")


@dataclass(frozen=True)
class Share:
    """CPUs and GPUs: of a node, of one actor, or of what is reserved together on one node."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"

    def holds(self, asked: "Share") -> bool:
        return asked.cpus <= self.cpus and asked.gpus <= self.gpus

    def __sub__(self, other: "Share") -> "Share":
        return Share(self.cpus - other.cpus, self.gpus - other.gpus)


@dataclass(frozen=True)
class Plan:
    """One placement of one run: what is reserved before anything starts, and who gets what of it."""

    device: str  # "cpu" or "cuda"
    transport: str
    shares: dict[str, list[Share]]  # by pool: of each engine or learner rank
    num_nodes: int | None  # over which they are dealt out in turn; None: each where it fits, on few nodes
    threads: int = 0  # OpenMP threads of a learner rank
    # Whether engines may sleep while the learner works, which takes the GPU memory that they give back; where the card
    # tells its memory, `cluster.run.memory` says whether they do, and who starts in turn.
    engines_sleep: bool = False
    # Whether engines and ranks start one after another: on a GPU that they share an engine whose cache is not planned
    # would take what others allocate meanwhile for its own.
    starts_in_turn: bool = False

    @property
    def colocated(self) -> bool:
        return self.num_nodes == 1

    @property
    def bundles(self) -> list[Share]:
        """What must be free together on one node: a node's part of everyone, or each engine's and rank's own."""
        each = [share for pool in POOLS for share in self.shares[pool]]
        if self.num_nodes is None:
            return each
        parts = [each[node :: self.num_nodes] for node in range(self.num_nodes)]
        cpus = [sum(share.cpus for share in part) for part in parts]
        return [Share(sum_cpus, 1.0 if part[0].gpus else 0.0) for sum_cpus, part in zip(cpus, parts, strict=True)]

    @property
    def strategy(self) -> str:
        """Ray's name for how the bundles lie on the nodes. Where one is lost the others take its part if they can."""
        return "PACK" if self.num_nodes is None else "SPREAD"

    def bundle(self, pool: str, index: int) -> int:
        """The place in `bundles` of engine or rank `index` of a pool."""
        place = index + sum(len(self.shares[before]) for before in POOLS[: POOLS.index(pool)])
        return place if self.num_nodes is None else place % self.num_nodes


def make_plan(recipe: Recipe, nodes: Sequence[Share]) -> Plan:
    """Colocated on what there is, or one GPU per engine worker and learner rank where there are enough; without GPUs
    on the cores of one node, or spread over several.

    Raises:
        ValueError: the plan cannot fit; names the resources asked and found.
    """
    student, teacher, learner = recipe.student, recipe.teacher, recipe.learner
    gpus = sum(node.gpus for node in nodes)
    if gpus == 0:
        return _cpu_plan(recipe, [node for node in nodes if node.cpus > 0])
    if learner.lora_rank:
        expected = "bfloat16 or float16: with learner.lora_rank vLLM's kernels for GPUs take 16 bits only"
        require(student.dtype != "float32", "student.dtype", student.dtype, expected)
    threads = max(1, int(min(node.cpus / node.gpus for node in nodes if node.gpus)))
    num_teachers = recipe.teacher_engines
    workers = student.num_engines * student.tensor_parallel_size + num_teachers * teacher.tensor_parallel_size
    asked = workers + learner.num_ranks
    if gpus >= asked:
        transport = _transport(recipe, ("nccl",), "with a GPU for each engine worker and learner rank")
        shares = {
            "student": [Share(1, student.tensor_parallel_size)] * student.num_engines,
            "teacher": [Share(1, teacher.tensor_parallel_size)] * num_teachers,
            "learner": [Share(1, 1)] * learner.num_ranks,
        }
        plan = Plan("cuda", transport, shares, num_nodes=None, threads=threads)
        _require_room(plan, nodes)
        return plan
    if asked == (3 if num_teachers else 2):
        transport = _transport(recipe, ("ipc",), "on one shared GPU")
        cpus = max(node.cpus for node in nodes if node.gpus)
        third = [Share(min(1.0, cpus / (asked + 1)), 0.33)]
        shares = {"student": third, "teacher": third * num_teachers, "learner": third}
        # Beyond a bound of 0 engines work on while the learner does.
        sleeps = recipe.run.max_policy_lag == 0
        return Plan("cuda", transport, shares, 1, threads, engines_sleep=sleeps, starts_in_turn=True)
    raise ValueError(
        f"placement: asked {asked} GPUs ({workers} engine workers and {learner.num_ranks} learner ranks), found "
        f"{gpus:g}; expected that many, or one of each pool on a single GPU"
    )


def _cpu_plan(recipe: Recipe, nodes: Sequence[Share]) -> Plan:
    """Every actor shares the cores of one node; of several nodes each takes its part of the actors."""
    cpus = max((node.cpus for node in nodes), default=0.0)
    if cpus < 1:
        raise ValueError(f"placement: asked 1 CPU, found {cpus:g}")
    several = len(nodes) > 1
    where = f"on {len(nodes)} nodes without GPUs" if several else "on a node without GPUs"
    transport = _transport(recipe, ("gloo", "shm") if several else ("shm", "gloo"), where)
    counts = (recipe.student.num_engines, recipe.teacher_engines, recipe.learner.num_ranks)
    if transport == "shm" or not several:  # on the largest node
        num_nodes = 1
    else:  # even the smallest has room for its part
        num_nodes, cpus = min(len(nodes), sum(counts)), min(node.cpus for node in nodes)
    actors, ranks = (-(-count // num_nodes) for count in (sum(counts), recipe.learner.num_ranks))
    share = Share(min(1.0, cpus / (actors + 1)), 0)
    shares = {pool: [share] * count for pool, count in zip(POOLS, counts, strict=True)}
    return Plan("cpu", transport, shares, num_nodes, threads=max(1, int(cpus) // ranks))


def _transport(recipe: Recipe, possible: Sequence[str], where: str) -> str:
    """The recipe's transport among those that work with a placement, the most natural first. An adapter is small: it
    goes as an object of Ray's, wherever the engines are."""
    named = recipe.weights.transport
    possible = ("ray",) if recipe.learner.lora_rank else possible
    if named not in ("auto", *possible):
        expected = " or ".join(repr(name) for name in ("auto", *possible))
        raise ValueError(f"weights.transport: found {named!r} {where}, expected {expected}")
    chosen = possible[0] if named == "auto" else named
    expected = f"false {where}, where weights go over {chosen}: only gloo carries what changed"
    require(not recipe.weights.delta or chosen == "gloo", "weights.delta", True, expected)
    return chosen


def _require_room(plan: Plan, nodes: Sequence[Share]) -> None:
    """Each engine fits on one node with what larger ones leave of it (first fit, the largest first).

    Raises:
        ValueError: names the engine or rank without a place, and what the nodes have left.
    """
    left = list(nodes)
    everyone = [(pool, index, share) for pool in POOLS for index, share in enumerate(plan.shares[pool])]
    for pool, index, share in sorted(everyone, key=lambda one: -one[2].gpus):
        node = next((number for number, free in enumerate(left) if free.holds(share)), None)
        if node is None:
            what = f"learner rank {index}" if pool == "learner" else f"{pool} engine {index}"
            found = ", ".join(str(free) for free in left)
            raise ValueError(f"placement: asked a node with {share} for {what}, found {found} left by the others")
        left[node] -= share
