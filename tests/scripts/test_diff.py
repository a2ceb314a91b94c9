"""What keeps the code small and in its rooms: two scripts differ by what their algorithms differ by, and no more.

The diff between two scripts is documentation: it stays short, and what should be equal is equal to the byte. Imports
between rooms point down only: benchmarks -> scripts -> harness -> envs, common.
"""

import ast
import re
import subprocess

import pytest

from harness.experiment import Experiment
from tests.running import ROOT, SCRIPTS

# script, script derived from it, most changed lines, sections that are equal byte for byte
PAIRS = [
    ("sac_jax.py", "diffsac_jax.py", 136, ("training", "main")),
    ("sac_jax.py", "crossq_jax.py", 90, ("policy", "training", "main")),
    ("crossq_jax.py", "diffcrossq_jax.py", 138, ("training", "main")),  # those of the first pair, and the actor's rate
    ("diffsac_jax.py", "diffwpo_jax.py", 80, ("networks", "policy", "training", "main")),
    ("ppo_jax.py", "diffppo_jax.py", 130, ("main",)),
]
SECTIONS = ["arguments", "networks", "agent state", "policy", "learning", "training", "main"]
BANNER = re.compile(r"^# -{20,} (.+)$", re.MULTILINE)

# Rooms from the bottom to the top; those of one level do not know each other.
ROOMS = {"common": 0, "envs": 0, "harness": 1, "scripts": 2, "benchmarks": 3}


def sections(script):
    """{banner: text below it}; what stands above the first banner is the section ''."""
    parts = BANNER.split((ROOT / script).read_text())
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def fields(path, name):
    """{field: (type, docstring)} of a class of arguments, as its source has them."""
    (cls,) = [x for x in ast.parse(path.read_text()).body if isinstance(x, ast.ClassDef) and x.name == name]
    found = {}
    for field, after in zip(cls.body, cls.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(after, ast.Expr), f"{field.target.id} has no docstring"
            found[field.target.id] = ast.unparse(field.annotation), after.value.value
    return found


# --------------------------------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize("base, derived, most, equal", PAIRS, ids=[f"{p[0]}-{p[1]}" for p in PAIRS])
def test_the_pair_stays_small(base, derived, most, equal):
    done = subprocess.run(["diff", base, derived], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    changed = sum(line.startswith(("<", ">")) for line in done.stdout.splitlines())
    print(f"diff {base} {derived}: {changed} changed lines")
    ours, theirs = sections(base), sections(derived)
    for name in equal:
        assert ours[name] == theirs[name], f"section {name!r} differs"
    assert 50 < changed <= most


def source(script, name):
    """The text of a function or a class, `Args.target_entropy` of one within a class."""
    text = (ROOT / script).read_text()
    body = ast.parse(text).body
    for part in name.split("."):
        (node,) = [x for x in body if getattr(x, "name", None) == part]
        body = node.body
    return ast.get_source_segment(text, node)


def test_diffcrossqs_policy_is_diffsacs():
    """To the byte, as DiffWPO's, of which the pairs above say it: what holds of one chain holds of all three."""
    assert sections("diffcrossq_jax.py")["policy"] == sections("diffsac_jax.py")["policy"]
    for name, scripts in (
        ("Actor", ["diffcrossq_jax.py"]),
        ("Args.target_entropy", ["diffcrossq_jax.py", "diffwpo_jax.py"]),
    ):
        assert {source(script, name) for script in scripts} == {source("diffsac_jax.py", name)}, name


def test_all_updates_end_alike():
    """How the temperature learns and when the actor is due in all five; what the targets do where there are some."""
    of_temperature, of_delay, ends = set(), set(), {}
    for script in ("sac_jax.py", "diffsac_jax.py", "diffwpo_jax.py", "crossq_jax.py", "diffcrossq_jax.py"):
        text = source(script, "update")
        before, end = text.split("    due = ")
        of_temperature.add(before[before.index("        if args.autotune:") :].split("agent.temperature.apply")[0])
        of_delay.add(end.split("    agent, actor_metrics")[0])
        ends[script] = end
    assert len(of_temperature) == len(of_delay) == 1
    assert ends["sac_jax.py"] == ends["diffsac_jax.py"] == ends["diffwpo_jax.py"] and "tau" in ends["sac_jax.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_the_same_banners_and_experiment_fields(script):
    """A script may give an argument that all have another default, and nothing else: same type, same words."""
    assert list(sections(script))[1:] == SECTIONS
    own, shared = fields(ROOT / script, "Args"), fields(ROOT / "harness" / "experiment.py", "Experiment")
    assert shared.keys() == Experiment.__dataclass_fields__.keys()
    assert "exp_name" not in own  # it is the file's name, also of a copy
    for name in own.keys() & shared.keys():
        assert own[name] == shared[name], name


# --------------------------------------------------------------------------------------------------------------- rooms


def modules():
    """{name: path} of all code: `harness.run`, `harness` for its __init__.py, `sac_jax`."""
    found = {path.stem: path for path in ROOT.glob("*_jax.py")}
    for room in ROOMS.keys() - {"scripts"}:
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name):
    """Names of our own modules that a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & MODULES.keys()
            found |= {node.module} if inner - MODULES.keys() else set()
    return {x for x in found if x in MODULES or x.split(".")[0] in ROOMS}


def room(name):
    return name.split(".")[0] if name.split(".")[0] in ROOMS else "scripts"


def test_the_rules_see_the_code():
    """That the rules below would notice something: who imports what is known for some modules."""
    assert {"common", "envs", "harness", "sac_jax", "harness.run", "envs.interface", "benchmarks.export"} <= set(
        MODULES
    )
    assert {"common.distributions"} == imports("common.diffusion")
    known = {"common", "common.distributions", "common.replay", "common.seeds", "envs", "harness", "harness.cli"}
    assert known >= imports("sac_jax")
    assert {"common.replay", "envs", "harness", "harness.cli"} <= imports("sac_jax")
    assert {"envs", "harness.checkpoint"} <= imports("harness.run")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down(name):
    """To a lower room or within the own one; common/ and envs/ import nothing of ours but themselves."""
    for other in imports(name):
        assert other in MODULES, f"{name} imports {other}, which is nowhere"
        assert room(other) == room(name) or ROOMS[room(other)] < ROOMS[room(name)], f"{name} imports {other}"


def test_no_circle_of_imports():
    """Also not between the files of a room, nor through an import within a function."""
    below = {name: imports(name) - {name} for name in MODULES}
    while free := [name for name, others in below.items() if not others]:
        for name in free:
            del below[name]
        below = {name: others - set(free) for name, others in below.items()}
    assert not below, f"a circle among or above {sorted(below)}"


def test_the_harness_knows_no_script():
    """It imports the script of a run folder by the name that is written there: no name of one stands in its code."""
    for name, path in MODULES.items():
        if room(name) == "harness":
            tree = ast.parse(path.read_text())
            words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
            assert not words & {script for x in SCRIPTS for script in (x, x.removesuffix(".py"))}, name


@pytest.mark.parametrize("script", SCRIPTS)
def test_above_main_a_script_uses_only_the_base_of_its_arguments(script):
    """Algorithms know no run: of harness/ they name `Experiment`, as Args' base and for its fields' options."""
    source = (ROOT / script).read_text()
    tree = ast.parse(source)
    (main,) = [source.count("\n", 0, m.start()) + 1 for m in BANNER.finditer(source) if m[1] == "main"]
    of_harness = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if (isinstance(node, ast.ImportFrom) and room(node.module) == "harness") or isinstance(node, ast.Import)
        for alias in node.names
        if isinstance(node, ast.ImportFrom) or room(alias.name) == "harness"
    }
    assert {"Experiment", "Run"} <= of_harness
    (args,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Args"]
    assert [ast.unparse(base) for base in args.bases] == ["Experiment"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in of_harness and node.lineno < main:
            assert node.id == "Experiment", f"line {node.lineno} uses {node.id}"
            assert args.lineno <= node.lineno <= args.end_lineno, f"line {node.lineno} uses {node.id}"


# ---------------------------------------------------------------------------------------------------------------- size


def lines(path):
    return len(path.read_text().splitlines())


# The two longest: an actor's loss with its reasons, and Rollout, Batch and make_batch. Shorter would be squeezed.
LONGER = {"diffwpo_jax.py": 430, "diffppo_jax.py": 450}
LIMITS = [(ROOT / script, LONGER.get(script, 420)) for script in SCRIPTS]
LIMITS += [(path, 160 if path.name == "checkpoint.py" else 200) for path in sorted((ROOT / "harness").rglob("*.py"))]


@pytest.mark.parametrize("path, most", LIMITS, ids=[str(path.relative_to(ROOT)) for path, _ in LIMITS])
def test_a_file_can_be_read_in_one_go(path, most):
    assert lines(path) <= most


def test_the_mathematics_is_short():
    assert sum(lines(path) for path in (ROOT / "common").rglob("*.py")) <= 450
