"""Content-addressed model folders: what was proven is what is loaded, whatever becomes of the registry.

    <root>/sha256/<digest>/content/...      the model's folder, read-only
    <root>/sha256/<digest>/manifest.json    each file with its size and sha256
    <root>/sha256/<digest>/owners/<id>      one empty file for each installation that kept it
    <root>/incoming/<uuid>/                 a copy under way; never looked at by readers

The digest of a folder is the sha256 of its manifest's files in canonical JSON, so it names every byte and every path.
A pickle with damaged bytes may load without any complaint; only the digest tells.
"""

import hashlib
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from serving.errors import ArtifactDamaged, ArtifactFolderNotWritable, ArtifactMissing
from serving.folders import make_folder, sync_folder

_CHUNK = 1 << 20
_STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class FileEntry:
    """One file of a folder."""

    path: str  # relative, with forward slashes
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """A kept folder."""

    digest: str
    folder: Path
    size_bytes: int


class ArtifactStore:
    """The store under one root folder; many processes and hosts may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, fill: Callable[[Path], object], owner: str = "") -> Artifact:
        """Keep what `fill` writes into the empty folder it is given, in the name of the installation `owner`.

        The folder appears under its digest whole or not at all, also after a kill at any moment.

        Raises:
            ArtifactFolderNotWritable: no space or no rights; nothing is left behind.
            ArtifactDamaged: there was a symbolic link or special file in it.
        """
        incoming = self.root / "incoming" / uuid.uuid4().hex
        try:
            content = incoming / "content"
            content.mkdir(parents=True)
            fill(content)
            return self._owned(self._settle(incoming), owner)
        except OSError as error:
            problem = os.strerror(error.errno) if error.errno else str(error)
            raise ArtifactFolderNotWritable(str(self.root), problem) from error
        finally:
            _remove(incoming)

    def find(self, digest: str) -> Artifact | None:
        """The kept folder, without looking at its bytes; None when it is not here."""
        home = self._home(digest)
        try:
            entries = _read_manifest(home)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return Artifact(digest, home / "content", sum(entry.size for entry in entries))

    def verify(self, digest: str) -> Artifact:
        """The kept folder after every byte of it was read and compared.

        Raises:
            ArtifactMissing: it is not here.
            ArtifactDamaged: a file was changed, added or lost; says which.
        """
        home = self._home(digest)
        if not home.is_dir():
            raise ArtifactMissing(digest, str(self.root))
        try:
            recorded = {entry.path: entry for entry in _read_manifest(home)}
            found = {entry.path: entry for entry in _entries(home / "content")}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ArtifactDamaged(digest, f"it cannot be read ({type(error).__name__}: {error})") from error
        if _digest(list(recorded.values())) != digest:
            raise ArtifactDamaged(digest, "its manifest was changed")
        problem = _difference(recorded, found)
        if problem:
            raise ArtifactDamaged(digest, problem)
        return Artifact(digest, home / "content", sum(entry.size for entry in found.values()))

    def digests(self) -> list[str]:
        """Everything that is kept."""
        folder = self.root / "sha256"
        return sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []

    def is_only_of(self, digest: str, owner: str) -> bool:
        """Whether this installation kept it, and no other one that shares the folder, or used it before."""
        folder = self._home(digest) / "owners"
        return folder.is_dir() and {each.name for each in folder.iterdir()} == {owner}

    def age(self, digest: str) -> float:
        """Seconds since it was kept."""
        return time.time() - self._home(digest).stat().st_mtime

    def discard(self, digest: str) -> None:
        """Remove a kept folder. Who may be discarded is for the caller to know.

        Whoever looks finds it whole or not at all, also after a kill at any moment; `sweep` takes what that leaves.

        Raises:
            ArtifactFolderNotWritable: no rights; it is still there.
        """
        gone = self.root / "incoming" / uuid.uuid4().hex
        try:
            gone.parent.mkdir(parents=True, exist_ok=True)
            self._home(digest).rename(gone)
        except FileNotFoundError:
            return  # it is not here, or somebody else discarded it meanwhile
        except OSError as error:
            raise ArtifactFolderNotWritable(str(self.root), os.strerror(error.errno or 0)) from error
        _remove(gone)

    def sweep(self, older_than: float = _STALE_SECONDS) -> int:
        """Remove copies that were under way when their process died, and discarded folders that were not yet gone.

        Returns how many. `older_than`: seconds.
        """
        folder = self.root / "incoming"
        if not folder.is_dir():
            return 0
        limit = time.time() - older_than
        stale = [each for each in folder.iterdir() if _is_older(each, limit)]
        for each in stale:
            _remove(each)
        return len(stale)

    def _owned(self, artifact: Artifact, owner: str) -> Artifact:
        if owner:
            folder = self._home(artifact.digest) / "owners"
            folder.mkdir(exist_ok=True)
            (folder / owner).touch()
            sync_folder(folder)
            sync_folder(folder.parent)
        return artifact

    def _home(self, digest: str) -> Path:
        return self.root / "sha256" / digest

    def _settle(self, incoming: Path) -> Artifact:
        content = incoming / "content"
        try:
            entries = _entries(content)
        except ValueError as error:
            raise ArtifactDamaged("(new)", str(error)) from error
        digest = _digest(entries)
        manifest = json.dumps({"files": [asdict(entry) for entry in entries]}, indent=1)
        (incoming / "manifest.json").write_text(manifest)
        _make_durable_and_read_only(incoming)
        home = self._home(digest)
        make_folder(home.parent)
        if home.exists() and not self._is_whole(digest):
            _take_owners_along(home, incoming)
            _remove(home)
        os.utime(incoming)
        try:
            incoming.rename(home)
        except OSError:
            if not home.is_dir():  # else the same bytes are kept already: those are as good as ours
                raise
            os.utime(home)  # about to be recorded, and so not to be discarded as long unused
        sync_folder(home.parent)
        return Artifact(digest, home / "content", sum(entry.size for entry in entries))

    def _is_whole(self, digest: str) -> bool:
        try:
            self.verify(digest)
        except (ArtifactDamaged, ArtifactMissing):
            return False
        return True


def folder_digest(folder: Path) -> str:
    """The digest under which a folder would be kept.

    Raises:
        ValueError: there is a symbolic link or special file in it.
    """
    return _digest(_entries(folder))


def _entries(folder: Path) -> list[FileEntry]:
    """Every file below `folder`, sorted by path."""
    found = []
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            continue
        name = path.relative_to(folder).as_posix()
        if not stat.S_ISREG(mode):
            raise ValueError(f"'{name}' is not a plain file; links would let a folder change after it was checked")
        found.append(FileEntry(name, path.stat().st_size, _sha256(path)))
    return found


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _digest(entries: list[FileEntry]) -> str:
    listed = [[entry.path, entry.size, entry.sha256] for entry in sorted(entries, key=lambda entry: entry.path)]
    return hashlib.sha256(json.dumps(listed, separators=(",", ":")).encode()).hexdigest()


def _read_manifest(home: Path) -> list[FileEntry]:
    return [FileEntry(**entry) for entry in json.loads((home / "manifest.json").read_text())["files"]]


def _difference(recorded: dict[str, FileEntry], found: dict[str, FileEntry]) -> str | None:
    """The first way in which two folders differ, in words."""
    for path in sorted(recorded.keys() | found.keys()):
        if path not in found:
            return f"the file '{path}' is gone"
        if path not in recorded:
            return f"the file '{path}' was added"
        if recorded[path] != found[path]:
            return f"the bytes of '{path}' were changed"
    return None


def _make_durable_and_read_only(folder: Path) -> None:
    """On the disk, not only in memory, before the name that promises it exists; and safe from a careless editor.

    Names too: a file of which only the bytes are on the disk is gone after a power cut.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.chmod(0o444)
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def _take_owners_along(home: Path, successor: Path) -> None:
    """Another installation that shares the folder needs what takes the place of the damaged one as much as we do."""
    owners = home / "owners"
    if owners.is_dir():
        shutil.copytree(owners, successor / "owners", dirs_exist_ok=True)


def _is_older(folder: Path, limit: float) -> bool:
    """False where it has gone: a copy that was under way a moment ago may have been settled or given up since."""
    try:
        return folder.stat().st_mtime < limit
    except FileNotFoundError:
        return False


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
