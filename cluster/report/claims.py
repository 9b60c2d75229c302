"""What the published figures lead one to expect, held against the runs."""

from dataclasses import dataclass

from cluster.report.arms import Arm
from cluster.report.groups import Group, Pool
from cluster.report.numbers import Number
from cluster.report.published import Claim


@dataclass(frozen=True)
class ArmVerdict:
    """One arm against one claim; the number is missing when the arm was not run."""

    arm: Arm
    verdict: str  # shown, refuted, undecided (unfinished, and not refuted yet) or not run
    number: Number | None


@dataclass(frozen=True)
class Verdict:
    """A claim with what each of its arms says of it."""

    claim: Claim
    verdict: str
    arms: tuple[ArmVerdict, ...]

    @property
    def ran(self) -> int:
        """How many of its arms have a figure."""
        return sum(arm.number is not None for arm in self.arms)


def judge_claims(group: Group, claims: tuple[Claim, ...]) -> list[Verdict]:
    """Each claim against the point estimates: refuted by one arm that misses it, shown when all arms that ran meet it.

    An unfinished arm refutes an upper bound, but decides nothing else.
    """
    return [_judge(group, claim) for claim in claims]


def _judge(group: Group, claim: Claim) -> Verdict:
    arms = tuple(_judge_arm(claim, pool) for pool in group.rows() if pool.arm.code in claim.arms)
    found = {arm.verdict for arm in arms}
    order = ("refuted", "shown", "undecided")
    return Verdict(claim, next((verdict for verdict in order if verdict in found), "not run"), arms)


def _judge_arm(claim: Claim, pool: Pool) -> ArmVerdict:
    number = pool.best(claim.rate) if claim.at == "best" else pool.final(claim.rate)
    if number is None:
        return ArmVerdict(pool.arm, "not run", None)
    met = claim.met_by(number.value)
    decided = pool.finished or (claim.most is not None and not met)
    return ArmVerdict(pool.arm, ("shown" if met else "refuted") if decided else "undecided", number)
