"""Keys from files and variables, and what happens when a file changes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cluster.ingress.api_keys import KeyRing, KeySource, parse_keys

ALICE, BOB, ROOT = "alice-0123456789abcdef", "bob-0123456789abcdef", "root-0123456789abcdef"


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def source(file: Path | None = None, entries: str = "", is_admin: bool = False) -> KeySource:
    return KeySource(file=file, variable="PHIMOE_API_KEYS", entries=entries, is_admin=is_admin)


def test_files_and_variables_hold_names_bare_keys_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# clients\n\nalice: {ALICE}  # since spring\n{BOB}\n")
    key_ring = KeyRing((source(file, entries="carol:carol-0123456789abcdef,dave-0123456789abcdef"),))
    names = [
        found.name
        for key in (ALICE, BOB, "carol-0123456789abcdef", "dave-0123456789abcdef")
        if (found := key_ring.find(key)) is not None
    ]
    assert names == ["alice", "key-4", "carol", "key-2"]
    assert (
        key_ring.find(ALICE[:-1]) is None
        and key_ring.find("") is None
        and key_ring.find("\udcff" * 20) is None
    )


def test_without_any_source_there_are_no_keys() -> None:
    key_ring = KeyRing((source(), source(is_admin=True)))
    assert not key_ring.has_keys and not key_ring.has_admin_keys


def test_admin_keys_are_told_apart() -> None:
    key_ring = KeyRing((source(entries=ALICE), source(entries=ROOT, is_admin=True)))
    alice, root = key_ring.find(ALICE), key_ring.find(ROOT)
    assert alice is not None and root is not None and key_ring.has_admin_keys
    assert (alice.is_admin, root.is_admin) == (False, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("short", "entry 1 is not at least 16", id="short"),
        pytest.param("fine:\n", "entry 1", id="name-without-key"),
        pytest.param(f"\nbad name:{ALICE}", "entry 2 has a name", id="name-with-space"),
        pytest.param("has space 0123456789", "entry 1", id="space-in-key"),
        pytest.param("schlüssel0123456789abc", "entry 1", id="not-ascii"),
    ],
)
def test_a_wrong_entry_is_named_by_its_number_and_never_shown(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        list(parse_keys(text, "keys", False))
    assert not any(part in str(caught.value) for part in ("short", ALICE, "0123456789"))


def test_the_same_key_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' and 'b' are the same key"):
        KeyRing((source(entries=f"a:{ALICE}"), source(entries=f"b:{ALICE}", is_admin=True)))


@pytest.mark.parametrize(
    "content", [None, "", "# nothing\n", "short\n"], ids=["missing", "empty", "comment", "wrong"]
)
def test_a_file_without_usable_keys_is_refused_at_the_start(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match="keys"):
        KeyRing((source(file),))


def test_a_changed_file_is_read_again_within_a_second(tmp_path: Path) -> None:
    file, clock = tmp_path / "keys", Clock()
    file.write_text(ALICE)
    key_ring = KeyRing((source(file),), clock)
    replacement = tmp_path / "new"
    replacement.write_text(BOB)
    replacement.rename(file)
    clock.seconds = 0.5
    assert key_ring.find(ALICE) is not None
    clock.seconds = 1.5
    assert key_ring.find(ALICE) is None and key_ring.find(BOB) is not None


def test_a_link_that_moves_counts_as_a_change(tmp_path: Path) -> None:
    clock = Clock()
    for name, key in (("one", ALICE), ("two", BOB)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_text(key)
    (tmp_path / "data").symlink_to("one")
    key_ring = KeyRing((source(tmp_path / "data" / "keys"),), clock)
    (tmp_path / "data").unlink()
    (tmp_path / "data").symlink_to("two")
    clock.seconds = 2
    assert key_ring.find(BOB) is not None and key_ring.find(ALICE) is None


@pytest.mark.parametrize("content", [None, "", "short\n"], ids=["removed", "emptied", "broken"])
def test_a_file_that_breaks_keeps_the_old_keys_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str | None
) -> None:
    file, clock = tmp_path / "keys", Clock()
    file.write_text(ALICE)
    key_ring = KeyRing((source(file),), clock)
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    clock.seconds = 2
    with caplog.at_level(logging.ERROR):
        assert key_ring.find(ALICE) is not None
    assert "stay as they were" in caplog.text and ALICE not in caplog.text
    file.write_text(BOB)
    clock.seconds = 4
    assert key_ring.find(BOB) is not None and key_ring.find(ALICE) is None


def test_nothing_that_is_shown_of_a_key_holds_it() -> None:
    key_ring = KeyRing((source(entries=f"alice:{ALICE}"),))
    found = key_ring.find(ALICE)
    assert found is not None
    assert ALICE not in repr(found) and found.digest.hex() not in repr(found)
