"""Files are written whole or not at all."""

import pytest

from jmeta.files import sole_writer, write_whole


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "report.json"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\udc80")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one_and_the_file_it_leads_to_is_written(tmp_path):
    file, link = tmp_path / "report.json", tmp_path / "latest.json"
    link.symlink_to(file)
    write_whole(link, "new")
    assert link.is_symlink()
    assert file.read_text() == "new"


def test_a_file_in_place_of_a_runs_folder_is_told(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(ValueError, match=f"{file} is a file; a run needs a folder"), sole_writer(file):
        pass
    assert file.read_text() == "mine"
