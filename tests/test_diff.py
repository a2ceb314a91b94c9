"""The diff between two scripts is the documentation: it stays small, and what should be equal is equal to the byte."""

import re
import subprocess

import pytest

from tests.scripts import ROOT

# script, script derived from it, most changed lines, sections that are equal byte for byte
PAIRS = [
    ("sac_jax.py", "diffsac_jax.py", 170, ("training", "main")),
    ("diffsac_jax.py", "diffwpo_jax.py", 80, ("networks", "policy", "training", "main")),
    ("ppo_jax.py", "diffppo_jax.py", 130, ("main",)),
]
SECTIONS = ["arguments", "networks", "agent state", "policy", "learning", "training", "main"]
SCRIPTS = sorted(path.name for path in ROOT.glob("*_jax.py"))


def sections(script):
    """{banner: text below it}; what stands above the first banner is the section ''."""
    parts = re.split(r"^# -{20,} (.+)$", (ROOT / script).read_text(), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def experiment_fields(script):
    """The first block of Args, up to the first empty line: names, types and docstrings. PPO's chunk is its rollout."""
    block = re.search(r"^class Args:\n(.*?)\n\n", (ROOT / script).read_text(), re.MULTILINE | re.DOTALL).group(1)
    fields = re.findall(r"^    (\w+): (.+) = .+\n    \"\"\"(.+)\"\"\"$", block, re.MULTILINE)
    assert len(fields) == block.count(" = ")
    return [field for field in fields if field[0] != "log_frequency"]


@pytest.mark.parametrize("base, derived, most, equal", PAIRS, ids=[f"{p[0]}-{p[1]}" for p in PAIRS])
def test_the_pair_stays_small(base, derived, most, equal):
    done = subprocess.run(["diff", base, derived], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    changed = sum(line.startswith(("<", ">")) for line in done.stdout.splitlines())
    print(f"diff {base} {derived}: {changed} changed lines")
    assert changed <= most
    ours, theirs = sections(base), sections(derived)
    for name in equal:
        assert ours[name] == theirs[name], f"section {name!r} differs"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_the_same_banners_and_experiment_fields(script):
    assert list(sections(script))[1:] == SECTIONS
    assert experiment_fields(script) == experiment_fields("sac_jax.py")
