"""What a run says that it ran with."""

import json
import subprocess
import sys
import types

import pytest

import sac_jax
from harness import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of one committed script, which is all that runs."""
    (tmp_path / "script.py").write_text("rate = 1\n")
    (tmp_path / "table.md").write_text("1\n")
    identity = ("-c", "user.name=A", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "All")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "ROOT", tmp_path.resolve())
    monkeypatch.setattr(provenance, "own_code", lambda: {tmp_path.resolve() / "script.py"})
    return tmp_path


def test_a_run_of_committed_code_is_of_its_commit(checkout):
    commit, changed = provenance.commit_and_changes()
    assert len(commit) == 40 and changed is False
    (checkout / "table.md").write_text("2\n")  # what its numbers become is no code
    (checkout / "other.py").write_text("")  # and does not run
    assert provenance.commit_and_changes() == (commit, False)
    (checkout / "script.py").write_text("rate = 2\n")
    assert provenance.commit_and_changes() == (commit, True)


def test_a_run_of_code_that_git_does_not_know_is_of_no_commit(checkout, tmp_path_factory, monkeypatch):
    for folder in (checkout, tmp_path_factory.mktemp("elsewhere")):
        copy = folder.resolve() / "copy.py"
        copy.write_text("rate = 3\n")
        monkeypatch.setattr(provenance, "own_code", lambda copy=copy: {checkout.resolve() / "script.py", copy})
        assert provenance.commit_and_changes()[1] is True
    monkeypatch.setattr(provenance, "ROOT", folder)
    assert provenance.commit_and_changes() == (None, None)


def test_own_code_is_what_was_neither_installed_nor_came_with_python(tmp_path, monkeypatch):
    mine = types.ModuleType("mine")
    mine.__file__ = str(tmp_path / "mine.py")
    monkeypatch.setitem(sys.modules, "mine", mine)
    assert tmp_path.resolve() / "mine.py" not in provenance.own_code()  # there is no such file
    (tmp_path / "mine.py").touch()
    files = provenance.own_code()
    assert {sac_jax.__file__, provenance.__file__, str(tmp_path.resolve() / "mine.py")} <= set(map(str, files))
    assert not {json.__file__, pytest.__file__, __file__} & set(map(str, files))
    assert {file.name for file in files if file.parent.name == "harness"} >= {"run.py", "folder.py"}
