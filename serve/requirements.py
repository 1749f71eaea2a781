"""What the container of a Bento installs: pinned with all that it needs, with the hashes of the files; no torch."""

from pathlib import Path

__all__ = ["LOCK_FILE", "serving_requirements"]

LOCK_FILE = "requirements.lock"
"""Written by `make lock`, in the format of pip's requirements; not in a Bento, where nothing is built any more."""


def serving_requirements(folder: Path = Path(__file__).parent) -> list[str]:
    """A line for each package of the lock in this folder, with its hashes; nothing where there is no lock.

    Of BentoML there is none: it adds itself in the version that builds the Bento.
    """
    lock = folder / LOCK_FILE
    if not lock.is_file():
        return []
    joined = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [" ".join(line.split()) for line in joined.splitlines() if line and not line.startswith("#")]
    return [line for line in lines if not line.startswith("bentoml==")]
