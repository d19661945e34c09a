"""What an interrupted run left is found again; what it cut short is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.errors import UserError
from trimtab.optimizer.journal import Journal

KEY = {"model": "abc", "rate": 1.5}


def test_a_finished_trial_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "out" / "journal.jsonl"
    journal = Journal(path, resume=False)
    assert journal.get("load", KEY) is None
    journal.put("load", KEY, {"rate": 1.4})
    assert journal.get("load", KEY) == {"rate": 1.4}
    journal.close()
    again = Journal(path, resume=True)
    assert again.get("load", KEY) == {"rate": 1.4}
    assert again.get("load", KEY | {"rate": 1.6}) is None
    assert again.get("quality", KEY) is None
    assert again.num_reused == 1
    again.close()


def test_a_line_that_was_cut_is_passed_over_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, resume=False)
    journal.put("load", KEY, 1)
    journal.put("load", KEY | {"rate": 2}, 2)
    journal.close()
    path.write_bytes(path.read_bytes()[:-20])
    resumed = Journal(path, resume=True)
    assert resumed.get("load", KEY) == 1
    assert resumed.get("load", KEY | {"rate": 2}) is None
    resumed.put("load", KEY | {"rate": 3}, 3)
    resumed.close()
    last = Journal(path, resume=True)
    assert last.get("load", KEY | {"rate": 3}) == 3
    last.close()


@pytest.mark.parametrize("text", ["", "\n", "{}\n", "[1]\n", "null\n", '{"format": 99}\n', "\0\n"])
def test_damage_is_passed_over(tmp_path: Path, text: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(text)
    journal = Journal(path, resume=True)
    journal.put("load", KEY, 1)
    journal.close()
    again = Journal(path, resume=True)
    assert again.get("load", KEY) == 1
    again.close()


def test_without_resume_the_earlier_one_is_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first = Journal(path, resume=False)
    first.put("load", KEY, 1)
    first.close()
    second = Journal(path, resume=False)
    assert second.get("load", KEY) is None
    second.close()
    assert (tmp_path / "journal.jsonl.before").read_text().count("\n") == 1


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file"):
        Journal(tmp_path / "file" / "journal.jsonl", resume=True)
