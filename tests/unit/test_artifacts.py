"""The artifact store: what was kept is what is loaded, to the byte, whatever happens meanwhile."""

import os
import pickle
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier

from serving.artifacts import Artifact, ArtifactStore, folder_digest
from serving.errors import ArtifactDamaged, ArtifactFolderNotWritable, ArtifactMissing
from tests.processes import wait_until


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def fill(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "MLmodel").write_text("flavors: {}\n")
    (folder / "data" / "model.pkl").write_bytes(os.urandom(1000))


def damage(artifact: Artifact, name: str, content: bytes) -> None:
    path = artifact.folder / name
    path.chmod(0o644)
    path.write_bytes(content)


def test_what_is_kept_is_found_and_verified(store: ArtifactStore) -> None:
    """A replica must get the very folder that was prepared."""
    kept = store.put(fill)
    assert store.verify(kept.digest) == kept == store.find(kept.digest)
    assert sorted(path.name for path in kept.folder.rglob("*") if path.is_file()) == ["MLmodel", "model.pkl"]
    assert kept.size_bytes == 12 + 1000
    assert kept.digest == folder_digest(kept.folder)


def test_a_damaged_pickle_that_still_loads_is_refused(store: ArtifactStore) -> None:
    """Eight zeroed bytes in a forest load without complaint and predict something else."""
    features, labels = make_classification(300, random_state=0)
    model = RandomForestClassifier(5, random_state=0).fit(features, labels)
    forest = pickle.dumps(model)
    kept = store.put(lambda folder: (folder / "model.pkl").write_bytes(forest))
    # The share of a class in some leaf. A damaged link between nodes would make predict run for ever instead.
    leaf = forest.rindex(struct.pack("<d", 1.0))
    zeroed = forest[:leaf] + bytes(8) + forest[leaf + 8 :]
    other = pickle.loads(zeroed)  # the trap: no error
    assert (other.predict_proba(features) != model.predict_proba(features)).any()
    damage(kept, "model.pkl", zeroed)
    with pytest.raises(ArtifactDamaged, match=r"the bytes of 'model.pkl' were changed"):
        store.verify(kept.digest)


def test_each_kind_of_damage_is_named(store: ArtifactStore) -> None:
    """The person who looks at it must know which file to look at."""
    kept = store.put(fill)
    (kept.folder / "extra.txt").write_text("x")
    with pytest.raises(ArtifactDamaged, match=r"'extra.txt' was added"):
        store.verify(kept.digest)
    (kept.folder / "extra.txt").unlink()
    (kept.folder / "MLmodel").unlink()
    with pytest.raises(ArtifactDamaged, match="'MLmodel' is gone"):
        store.verify(kept.digest)
    manifest = kept.folder.parent / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text('{"files": []}')
    with pytest.raises(ArtifactDamaged, match="manifest was changed"):
        store.verify(kept.digest)
    manifest.write_text('{"files"')
    with pytest.raises(ArtifactDamaged, match="cannot be read"):
        store.verify(kept.digest)
    assert store.find(kept.digest) is None


def test_an_unknown_digest_is_missing(store: ArtifactStore) -> None:
    """Missing and damaged need different remedies."""
    with pytest.raises(ArtifactMissing):
        store.verify("0" * 64)
    assert store.find("0" * 64) is None


def test_keeping_the_same_bytes_twice_is_one_folder(store: ArtifactStore) -> None:
    """Two versions of the same bytes must not cost the disk twice, nor fail."""
    first = store.put(lambda folder: (folder / "a").write_text("same"))
    assert store.put(lambda folder: (folder / "a").write_text("same")) == first
    assert store.digests() == [first.digest]


def test_keeping_again_repairs_what_was_damaged(store: ArtifactStore) -> None:
    """Preparing a version anew is the way out that the error names, so it must work."""
    kept = store.put(lambda folder: (folder / "a").write_text("same"))
    damage(kept, "a", b"rotten")
    store.put(lambda folder: (folder / "a").write_text("same"))
    assert store.verify(kept.digest) == kept


def test_a_failing_copy_leaves_nothing(store: ArtifactStore) -> None:
    """A download that breaks off must not leave half a model that somebody takes for a whole one."""

    def breaks_off(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.put(breaks_off)
    assert store.digests() == []
    assert list((store.root / "incoming").iterdir()) == []


def test_a_killed_copy_is_never_seen_and_swept_later(store: ArtifactStore, tmp_path: Path) -> None:
    """A machine that dies in the middle of preparing must come up with whole folders only."""
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom serving.artifacts import ArtifactStore\n"
        "def fill(folder):\n (folder / 'half').write_text('half')\n print('copying', flush=True)\n time.sleep(600)\n"
        f"ArtifactStore(Path({str(store.root)!r})).put(fill)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as copying:
        assert copying.stdout
        assert copying.stdout.readline() == b"copying\n"
        copying.send_signal(signal.SIGKILL)
        copying.wait(30)
    assert store.digests() == []
    assert store.sweep(older_than=3600) == 0  # it may still be somebody's
    wait_until(lambda: store.sweep(older_than=0) == 1, "the left-over copy to be swept")
    assert list((store.root / "incoming").iterdir()) == []


def test_links_are_refused(store: ArtifactStore, tmp_path: Path) -> None:
    """What a link points to can change after it was checked."""
    (tmp_path / "outside").write_text("x")
    with pytest.raises(ArtifactDamaged, match="'link' is not a plain file"):
        store.put(lambda folder: (folder / "link").symlink_to(tmp_path / "outside"))
    assert store.digests() == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The message must say which folder, why, and which setting."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactFolderNotWritable, match=r"Not a directory.*SWITCHYARD_ARTIFACT_FOLDER"):
        ArtifactStore(tmp_path / "file" / "artifacts").put(fill)


def test_kept_files_are_read_only(store: ArtifactStore) -> None:
    """An editor opened on the wrong file must not change what serves."""
    assert all(path.stat().st_mode & 0o222 == 0 for path in store.put(fill).folder.rglob("*") if path.is_file())


def test_age_counts_from_keeping(store: ArtifactStore) -> None:
    """Housekeeping removes by age; a long download must not make a new folder look old."""
    kept = store.put(fill)
    assert store.age(kept.digest) < 60
    old = time.time() - 7200
    os.utime(kept.folder.parent, (old, old))
    assert store.age(kept.digest) > 7000


names = st.text("abc/.-é", min_size=1, max_size=8).filter(
    lambda name: all(part not in ("", ".", "..") for part in name.split("/"))
)


@budget(max_examples=60, deadline=None)
@given(files=st.dictionaries(names, st.binary(max_size=64), min_size=1, max_size=4), flip=st.data())
def test_every_byte_and_every_name_counts(
    files: dict[str, bytes], flip: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two folders that differ anywhere must not share a digest; order of writing must not matter."""

    def written(contents: list[tuple[str, bytes]]) -> str | None:
        folder = tmp_path_factory.mktemp("folder")
        try:
            for name, content in contents:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        except OSError:
            return None  # one name is a folder of another
        return folder_digest(folder)

    digest = written(list(files.items()))
    if digest is None:
        return
    assert written(list(reversed(files.items()))) == digest
    name = flip.draw(st.sampled_from(sorted(files)))
    assert written([*((n, c) for n, c in files.items() if n != name), (name, files[name] + b"!")]) != digest
    assert written([*((n, c) for n, c in files.items() if n != name), (name + "x", files[name])]) != digest


def test_keeping_the_same_bytes_again_makes_them_young(store: ArtifactStore) -> None:
    """Long unused and now about to be recorded: housekeeping must not discard them in between."""
    digest = store.put(lambda folder: (folder / "x").write_text("1")).digest
    os.utime(store.root / "sha256" / digest, (0, 0))
    store.put(lambda folder: (folder / "x").write_text("1"))
    assert store.age(digest) < 60


def test_a_repaired_folder_still_belongs_to_everybody_who_kept_it(store: ArtifactStore) -> None:
    """Housekeeping of one installation would remove what another one serves, once a damaged copy was replaced."""

    def same(folder: Path) -> None:
        (folder / "model.pkl").write_bytes(b"model")

    kept = store.put(same, "first")
    store.put(same, "second")
    damage(kept, "model.pkl", b"damage")
    store.put(same, "first")
    store.verify(kept.digest)
    assert not store.is_only_of(kept.digest, "first")


def test_names_are_on_the_disk_before_anybody_is_told(store: ArtifactStore, synced: list[Path]) -> None:
    """After a power cut a version that was recorded as kept would be gone, and with it the way back."""
    kept = store.put(fill, owner="ours")
    home = kept.folder.parent
    assert store.root / "incoming" in {path.parent for path in synced}  # content and manifest, under their first name
    assert {"content", "data"} <= {path.name for path in synced}
    assert [synced[-1], synced[-2], synced[-3]] == [home, home / "owners", home.parent]
    assert store.root in synced  # where the first artifact of all made the folder sha256
