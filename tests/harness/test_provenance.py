"""What a run says that it ran with."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import types

import pytest

import sac_jax
from harness import provenance
from tests.running import ROOT, environment


def commit_all(folder):
    """Makes the folder a repository with one commit of all that is in it."""
    own = {name: value for name, value in environment().items() if not name.startswith("GIT_")}
    identity = ("-c", "user.name=A", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false")
    for command in (
        ("init", "-q"),
        ("add", "."),
        (*identity, "-c", "core.hooksPath=/dev/null", "commit", "-qm", "All"),
    ):
        subprocess.run(["git", *command], cwd=folder, check=True, env=own)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of one committed script, which is all that runs."""
    (tmp_path / "größe.py").write_text("rate = 1\n")
    (tmp_path / "table.md").write_text("1\n")
    commit_all(tmp_path)
    monkeypatch.setattr(provenance, "ROOT", tmp_path.resolve())
    monkeypatch.setattr(provenance, "own_code", lambda: {tmp_path.resolve() / "größe.py"})
    return tmp_path


def test_a_run_of_committed_code_is_of_its_commit(checkout, monkeypatch):
    commit, changed = provenance.commit_and_changes()
    assert len(commit) == 40 and changed == {}
    (checkout / "table.md").write_text("2\n")  # what its numbers become is no code
    (checkout / "other.py").write_text("")  # and does not run
    assert provenance.commit_and_changes() == (commit, {})
    monkeypatch.setenv("GIT_DIR", str(checkout / "nowhere"))
    assert provenance.commit_and_changes() == (commit, {})
    (checkout / "größe.py").write_text("rate = 2\n")
    digest = hashlib.sha256(b"rate = 2\n").hexdigest()[:12]
    assert provenance.commit_and_changes() == (commit, {"größe.py": digest})
    before = provenance.versions()
    assert before["git_dirty"] is True and before["git_changes"] == {"größe.py": digest}
    assert provenance.changes(before, provenance.versions()) == []
    (checkout / "größe.py").write_text("rate = 3\n")
    assert provenance.changes(before, provenance.versions()) == ["the code of größe.py"]
    (checkout / "größe.py").unlink()
    assert provenance.commit_and_changes()[1] == {"größe.py": None}
    assert provenance.changes(before, provenance.versions()) == ["the code of größe.py"]
    names_alone = before | {"git_changes": ["größe.py"]}  # of an older run, which may have had this code or another
    assert provenance.changes(names_alone, before) == ["the code of größe.py"]
    # Without the file among the changes it is as committed, which may be what ran, committed since, or not.
    clean = {name: value for name, value in before.items() if name != "git_changes"} | {"git_dirty": False}
    for content, words in (("rate = 2\n", []), ("rate = 1\n", ["the code of größe.py"])):
        (checkout / "größe.py").write_text(content)
        assert provenance.changes(before, clean) == ["git_dirty True -> False", *words]


def test_a_run_of_code_that_git_does_not_know_is_of_no_commit(checkout, tmp_path_factory, monkeypatch):
    for folder in (checkout, tmp_path_factory.mktemp("elsewhere")):
        copy = folder.resolve() / "copy.py"
        copy.write_text("rate = 3\n")
        monkeypatch.setattr(provenance, "own_code", lambda copy=copy: {checkout.resolve() / "größe.py", copy})
        assert [*provenance.commit_and_changes()[1]] == [str(copy)]
    monkeypatch.setattr(provenance, "ROOT", folder)
    assert provenance.commit_and_changes() == (None, None)
    assert provenance.versions()["git_dirty"] is None and "git_changes" not in provenance.versions()


def test_own_code_is_what_was_neither_installed_nor_came_with_python(tmp_path, monkeypatch):
    class Lazy(types.ModuleType):
        def __getattr__(self, name):
            raise ImportError(f"no {name}")

    lazy, mine = Lazy("lazy"), types.ModuleType("mine")
    mine.__file__ = str(tmp_path / "mine.py")
    for module in (lazy, mine):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    assert tmp_path.resolve() / "mine.py" not in provenance.own_code()  # there is no such file
    (tmp_path / "mine.py").touch()
    files = {str(file) for file in provenance.own_code()}
    assert {os.path.realpath(module.__file__) for module in (sac_jax, provenance, mine)} <= files
    assert not {os.path.realpath(name) for name in (json.__file__, pytest.__file__, __file__)} & files


def test_a_script_of_a_clean_checkout_is_clean(tmp_path):
    """All that a script loads, and what the machine loads before it."""
    checkout, machine = tmp_path / "checkout", tmp_path / "machine"
    for room in ("common", "envs", "harness"):
        shutil.copytree(ROOT / room, checkout / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "diffsac_jax.py", checkout)
    machine.mkdir()
    (machine / "sitecustomize.py").write_text("")
    (checkout / "start.py").write_text(
        "import diffsac_jax\nfrom harness.provenance import commit_and_changes as c\nprint(c())\n"
    )
    commit_all(checkout)
    ran = {**environment(), "PYTHONPATH": str(machine), "PYTHONDONTWRITEBYTECODE": "1"}

    def start(script):
        done = subprocess.run(
            [sys.executable, script], cwd=checkout, env=ran, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert start("start.py").endswith("', {})")
    shutil.copy(checkout / "start.py", checkout / "mine.py")
    assert re.search(r"/mine\.py': '[0-9a-f]{12}'}\)$", start("mine.py"))


def test_a_change_that_waits_to_be_committed_is_a_change(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("rate = 1\n")
    commit_all(tmp_path)
    monkeypatch.setattr(provenance, "ROOT", tmp_path.resolve())
    monkeypatch.setattr(provenance, "own_code", set)
    (tmp_path / "a.py").write_text("rate = 2\n")
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    subprocess.run(["git", "add", "a.py"], cwd=tmp_path, check=True)
    assert [*provenance.commit_and_changes()[1]] == ["a.py"]
