"""How much of its GPU a rank of the learner uses."""

from dataclasses import dataclass, replace

from cluster.sizing.shape import ModelShape, shape_of
from cluster.sizing.speed import Device, device_of, learned_flops
from learner.report import PARTS, Metric, StepReport


@dataclass(frozen=True)
class CardUse:
    """A GPU whose peak is known, and the model that a rank trains on it."""

    device: Device
    shape: ModelShape
    is_adapter: bool

    def add(self, report: StepReport) -> StepReport:
        """With the share of the peak that the step's parts reached, as the metric `mfu`; a step that ran nothing has
        none."""
        names = [f"{part}_s" for part in PARTS]
        seconds = sum(report.metrics[name].value for name in names if name in report.metrics)
        if not seconds:
            return report
        reached = learned_flops(self.shape, report.work, self.is_adapter) / seconds / self.device.flops
        return replace(report, metrics=report.metrics | {"mfu": Metric(reached, "mean")})


def card_of(model: str, is_adapter: bool) -> CardUse | None:
    """Of this process; None on a CPU, and on a GPU whose peak is not in the table."""
    import torch

    device = device_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return None if device is None else CardUse(device, shape_of(model), is_adapter)
