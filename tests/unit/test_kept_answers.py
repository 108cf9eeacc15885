"""Answers to request ids on disk: found by whoever comes next, and never somebody else's."""

import os
from pathlib import Path

from structlog.testing import capture_logs

from serving.kept_answers import Kept, KeptAnswers

DIGEST = b"d" * 16
RING = 64 * 1024


def key_of(number: int) -> bytes:
    """As a digest would be: spread over all values."""
    return os.urandom(12) + number.to_bytes(4, "big")


def test_a_process_that_starts_again_knows_what_its_predecessor_answered(tmp_path: Path) -> None:
    """A retry after a crash would be computed again, perhaps by another version."""
    keys = [key_of(number) for number in range(20)]
    for key in keys:  # each a process that is killed without a word
        KeptAnswers(tmp_path, 0).keep(key, DIGEST, b"answer to " + key)
    reborn = KeptAnswers(tmp_path, 0)
    assert [reborn.find(key) for key in keys] == [Kept(DIGEST, b"answer to " + key) for key in keys]
    assert reborn.find(key_of(99)) is None


def test_a_process_that_starts_later_is_noticed(tmp_path: Path) -> None:
    """With two HTTP processes a retry on a new connection would be computed again."""
    first = KeptAnswers(tmp_path, 0)
    key = key_of(1)
    assert first.find(key) is None
    second = KeptAnswers(tmp_path, 1)
    second.keep(key, DIGEST, b"answer")
    assert first.find(key) == Kept(DIGEST, b"answer")


def test_a_long_answer_comes_back_whole(tmp_path: Path) -> None:
    """Answers of many rows would be cut off."""
    kept = KeptAnswers(tmp_path, 0)
    key, answer = key_of(1), os.urandom(500_000)
    kept.keep(key, DIGEST, answer)
    assert kept.find(key) == Kept(DIGEST, answer)
    kept.keep(key, DIGEST, bytes(2 << 20))
    assert kept.find(key) == Kept(DIGEST, answer)


def test_the_oldest_give_way_and_none_is_mistaken_for_another(tmp_path: Path) -> None:
    """The disk would fill up, or a client would be given the answer that overwrote its own."""
    kept = KeptAnswers(tmp_path, 0, ring_bytes=RING)
    keys = [key_of(number) for number in range(1000)]
    for key in keys:
        kept.keep(key, DIGEST, key * 20)
    found = [kept.find(key) for key in keys]
    assert all(each in (None, Kept(DIGEST, key * 20)) for each, key in zip(found, keys, strict=True))
    there = [each is not None for each in found]
    assert there == sorted(there)  # first those that are forgotten
    assert 100 < sum(there) < 200
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 8 << 20


def test_what_a_power_cut_damaged_is_not_answered(tmp_path: Path) -> None:
    """A client would get garbage for an answer."""
    kept = KeptAnswers(tmp_path, 0, ring_bytes=RING)
    key = key_of(1)
    kept.keep(key, DIGEST, b"answer" * 10)
    file = tmp_path / "api-0"
    content = bytearray(file.read_bytes())
    at = content.index(b"answer")
    content[at] ^= 1
    file.write_bytes(content)
    assert kept.find(key) is None
    file.write_bytes(content[: at + 3])
    assert kept.find(key) is None


def test_a_disk_that_refuses_stops_nothing(tmp_path: Path) -> None:
    """Predictions would fail for want of a convenience."""
    (tmp_path / "answers").write_text("in the way")
    with capture_logs() as lines:
        kept = KeptAnswers(tmp_path / "answers", 0)
        kept.keep(key_of(1), DIGEST, b"answer")
        assert kept.find(key_of(1)) is None
        kept.close()
    assert [each["log_level"] for each in lines] == ["warning"]
