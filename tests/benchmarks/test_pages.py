"""The command: pages from made-up results, and the committed pages."""

import re

import pytest

from benchmarks import export, figures
from benchmarks.pages import ROOT, filled, main, pages
from benchmarks.results import ALGORITHMS, FAMILIES, load
from benchmarks.tables import SETTINGS, TABLES
from envs import UserError
from tests.benchmarks.conftest import made_up_rows


@pytest.fixture
def call(monkeypatch, capsys):
    """Calls the command with its figures replaced by one empty file: how they look is for test_figures.py."""

    def draw_figures(results, folder):
        folder.mkdir(exist_ok=True)
        (folder / "aggregate.png").touch()
        return [folder / "aggregate.png"]

    def call(*words):
        monkeypatch.setattr("sys.argv", ["pages", *map(str, words)])
        capsys.readouterr()
        try:
            status = main()
        except SystemExit as leaving:
            status = leaving.code
        return status, capsys.readouterr()

    monkeypatch.setattr(figures, "draw_figures", draw_figures)
    return call


@pytest.mark.parametrize(
    "sentence",
    [
        "<!-- verdict diffsac_jax/sac_jax deterministic -->of old<!-- end -->",
        "<!-- verdict diffsac_jax / sac_jax -->of old<!-- end -->",
        "<!-- verdict diffsac_jax / sac_jax deterministic -->of old\n\nMore.\n",
        "<!-- verdict diffsac / sac_jax deterministic -->of old<!-- end -->",
    ],
)
def test_a_verdict_that_cannot_be_filled_in(checkout, call, sentence):
    (checkout / "README.md").write_text(page := f"{sentence} <!-- table off-policy -->\n<!-- end -->\n")
    status, printed = call("--root", checkout)
    assert status == 2 and "verdict" in printed.err and (checkout / "README.md").read_text() == page


def with_every_table(root):
    lines = "".join(f"<!-- table {name} -->\n<!-- end -->\n" for name in TABLES)
    (root / "README.md").write_text(f"Top\n{lines}End\n")
    return root / "README.md"


def test_pages(checkout, call):
    path, folder = with_every_table(checkout), checkout / "benchmarks"
    sentence = "DiffSAC is <!-- verdict diffsac_jax /\nsac_jax stochastic -->{}<!-- end -->.\n"
    figure = "<!-- figure aggregate: A caption -->\n"
    (folder / "README.md").write_text(f"{sentence.format('of old')}{figure}<!-- end -->\n")
    assert call("--root", checkout)[0] == 0
    page = path.read_text()
    assert page.startswith("Top\n") and page.endswith("End\n")
    assert re.findall(r"No results for the table '(.*)'", page) == ["verdicts-crossq"]  # which has no made up runs
    assert page.count("|---|") >= len(TABLES) - 1
    linked = (folder / "README.md").read_text()
    said = sentence.format("**better**, 1.99 (1.97 to 2.00), p = 0.005")
    assert linked == f"{said}{figure}\n![A caption](figures/aggregate.png)\n\n<!-- end -->\n"
    # Results elsewhere get a page and figures of their own, and leave those of the checkout alone.
    assert call("--results", folder / "results")[0] == 0
    own = (folder / "results" / "results.md").read_text()
    assert "![aggregate](figures/aggregate.png)" in own and "| Hopper-v4 | 120k | 1-3 |" in own
    assert "bandit" not in own and (folder / "results" / "figures" / "aggregate.png").exists()
    assert "No results" not in own and "| ppo_ent0.01 | Hopper-v4 | 90k | 2 |" in own  # whatever it is called
    for other in (checkout / "none", folder):  # which has other CSV files
        status, printed = call("--results", other)
        assert status == 2 and "no CSV files of export.py" in printed.err
    assert path.read_text() == page
    # A second call changes nothing.
    status, printed = call("--tables", "--root", checkout)
    assert status == 0 and printed.out == ""


@pytest.mark.parametrize("present", ["", "sac_jax__Hopper-v4", "diffsac_jax__Walker2d-v4", "diffppo_jax__Hopper-v4"])
def test_any_subset_of_results(checkout, tmp_path, call, present):
    """Tables without data say so, one algorithm alone is enough for the others."""
    folder = tmp_path / "benchmarks"
    (folder / "results").mkdir(parents=True)
    if present:
        source = checkout / "benchmarks" / "results" / f"{present}.csv"
        (folder / "results" / source.name).write_bytes(source.read_bytes())
    (folder / "reference.csv").write_bytes((checkout / "benchmarks" / "reference.csv").read_bytes())
    page = with_every_table(tmp_path)
    assert call("--tables", "--root", tmp_path)[0] == 0
    assert page.read_text().count("No results for the table") >= (4 if present else len(TABLES) - len(SETTINGS))


@pytest.mark.parametrize("end", ["cut", "x", "\udcff"])
def test_a_damaged_file_is_named_in_one_line(checkout, tmp_path, call, end):
    """A row that was cut off, as by a full disk, and one with a word where a number belongs."""
    path = tmp_path / "sac_jax__Hopper-v4.csv"
    header, *lines = (checkout / "benchmarks" / "results" / path.name).read_text().splitlines()
    cells = lines[-1].split(",")
    lines[-1] = ",".join(cells[:8]) if end == "cut" else ",".join([*cells[:5], end, *cells[6:]])
    path.write_text("\n".join([header, *lines]), errors="surrogateescape")
    status, printed = call("--tables", "--results", tmp_path)
    assert status == 2 and printed.err.startswith(f"error: {path} is damaged: ") and printed.err.count("\n") == 1
    if end != "x":  # which export leaves alone
        with pytest.raises(UserError, match=r" is damaged: "):
            export.read_csv(path)


def test_a_folder_that_cannot_be_written_is_one_line(checkout, tmp_path, call):
    path = "sac_jax__Hopper-v4.csv"
    (tmp_path / path).write_bytes((checkout / "benchmarks" / "results" / path).read_bytes())
    (tmp_path / "results.md").symlink_to("/dev/full")
    status, printed = call("--tables", "--results", tmp_path)
    assert status == 2 and printed.err == f"error: cannot write {tmp_path / 'results.md'}: No space left on device\n"
    (tmp_path / "figures").touch()
    status, printed = call("--results", tmp_path)
    assert status == 2 and printed.err == f"error: cannot write {tmp_path / 'figures'}: File exists\n"


def test_algorithms_of_ones_own_stand_beside_those_whose_runs_theirs_are_like(checkout, tmp_path, call):
    """By length and steps between evaluations. Settings of our own scripts, `ppo_ent0.01` here, are no algorithms."""
    before, ends = (dict(FAMILIES), dict(ALGORITHMS)), {"ppo_ent0.01": 3}
    names = {"sac_jax": 10_000, "my_sac": 10_000, "ppo_jax": 40_000, "my_ppo": 40_000, "ppo_ent0.01": 40_000}
    for name, every in names.items():
        script = "ppo_jax" if name == "ppo_ent0.01" else name
        for seed in (1, 2, 3):
            rows = made_up_rows(name, "Hopper-v4", seed, ends.get(name, 15), 10, every=every, script=script)
            export.merge(rows, tmp_path)
    assert call("--tables", "--results", tmp_path)[0] == 0
    page = (tmp_path / "results.md").read_text()
    for kin, own, steps, policies in (("SAC", "my_sac", "150k", 2), ("PPO", "my_ppo", "600k", 3)):
        assert f"| Environment | steps | seeds | {kin} | {own} |" in page and f"| Hopper-v4 | {own} | {steps} |" in page
        assert page.count(f"\n| {own} / {kin} | ") == page.count(f"\n| {own} / ") == policies
    assert "ppo_ent0.01 over" not in page and "| ppo_ent0.01 | Hopper-v4 | 120k |" in page
    assert (dict(FAMILIES), dict(ALGORITHMS)) == before
    for path in tmp_path.glob("*.csv"):
        if not path.name.startswith("my_ppo"):
            path.unlink()
    assert call("--tables", "--results", tmp_path)[0] == 0  # alone it is shown, too
    assert "| Environment | steps | seeds | my_ppo |" in (tmp_path / "results.md").read_text()


def test_unknown_table_is_refused(tmp_path, call):
    (tmp_path / "README.md").write_text("<!-- table no-such -->\n<!-- end -->\n")
    status, printed = call("--tables", "--root", tmp_path)
    assert status == 2 and "asks for the table 'no-such'; there are off-policy, " in printed.err


def test_committed_tables_match_the_results():
    """What `python -m benchmarks.pages --tables` would write is what the pages say."""
    folder = ROOT / "benchmarks"
    results = load(folder / "results")
    found = pages(ROOT)
    assert found and "README.md" in {page.name for page in found}
    for page in found:
        text = page.read_text()
        new = filled(text, page.parent, results, folder, folder / "figures")
        assert new == text, f"{page}: run python -m benchmarks.pages --tables"


def prose(page):
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """Of the page's headings, as GitHub makes them: lower case, hyphens for spaces, no punctuation."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_nothing_is_left_to_be_filled_in():
    for page in pages(ROOT):
        assert not re.search(r"TODO|FIXME|XXX", page.read_text()), page


def test_links_between_the_pages_lead_somewhere():
    own = [*pages(ROOT), ROOT / "CONTRIBUTING.md"]
    links = [(page, link) for page in own for link in re.findall(r"\]\(([^)\s]+)\)", prose(page))]
    inner = [(page, *link.partition("#")[::2]) for page, link in links if not link.startswith("http")]
    assert any(anchor for _, _, anchor in inner)
    for page, path, anchor in inner:
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {path}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {path}#{anchor}"


def test_every_row_stands_in_a_table():
    """A blank line within a table makes the rows below it text."""
    own = [*pages(ROOT), ROOT / "CONTRIBUTING.md"]
    tables = [(page, table) for page in own for table in re.findall(r"(?:^\|.*\n)+", prose(page), re.MULTILINE)]
    assert len(tables) > 20
    for page, table in tables:
        assert re.match(r".*\n\|(-+\|)+\n", table), f"{page.name}: {table}"
