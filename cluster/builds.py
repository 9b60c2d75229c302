"""Which torchvision goes with which torch: what reports a machine and what refuses a model say the same of it.

vLLM 0.32 imports torchvision for a model that also takes images. The one that pip finds is built for CUDA: beside a
torch for CPUs it breaks `import transformers` ("operator torchvision::nms does not exist"). A +cpu build fits that.
"""

from importlib.metadata import PackageNotFoundError, version

CPU = "+cpu"  # how the version of a build for CPUs ends


def installed(name: str) -> str:
    """A distribution's version, "" where it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def is_broken(torch: str, torchvision: str) -> bool:
    """Whether this torchvision keeps transformers from being imported. Both by their versions, "" where missing."""
    return torch.endswith(CPU) and bool(torchvision) and not torchvision.endswith(CPU)


def lacks_torchvision(torch: str, torchvision: str) -> str:
    """What to expect for a model that takes images, "" where vLLM loads it."""
    if torchvision and not is_broken(torch, torchvision):
        return ""
    if torch.endswith(CPU):
        return "a text model: vLLM needs torchvision for it, and pip's does not fit a torch for CPUs"
    return "torchvision to be installed, without which vLLM does not load it"
