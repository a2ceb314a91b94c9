"""Figures and tables from the committed results alone, offline.

    python -m benchmarks.pages             figures into benchmarks/figures, tables into README.md and the other pages
    python -m benchmarks.pages --tables    tables only (needs no matplotlib)
    python -m benchmarks.pages --results FOLDER    of your own CSV files, into FOLDER/figures and FOLDER/results.md

A table is whatever stands between `<!-- table NAME -->` and `<!-- end -->` in README.md, benchmarks/README.md or a page
of docs/; `<!-- figure NAME: CAPTION -->` holds the figure's link in the same way, once the figure exists.
"""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.results import Results, load, with_own_algorithms
from benchmarks.tables import TABLES, TRAINING, verdict_in_words
from benchmarks.work import ROOT
from envs import UserError
from harness.cli import one_line_errors

MARKERS = re.compile(
    r"(?P<begin><!-- (?:table (?P<table>[a-z-]+)|figure (?P<figure>\w+): (?P<caption>.*?)) -->\n).*?<!-- end -->",
    re.DOTALL,
)
SENTENCE = re.compile(r"(<!-- verdict (?P<pair>.*?) -->)(?:(?!<!--).)*(<!-- end -->)?", re.DOTALL)


def pages(root: Path) -> list[Path]:
    """The pages that may hold tables."""
    candidates = [root / "README.md", root / "benchmarks" / "README.md", *sorted((root / "docs").glob("*.md"))]
    return [path for path in candidates if path.exists()]


def filled(text: str, place: Path, results: Results, folder: Path, figures: Path) -> str:
    """A page's text with tables, links to figures and verdicts in sentences made anew.

    Raises UserError for a table or a verdict that nobody makes.

    Args:
      place: the folder of the page. folder: the benchmarks folder. figures: the folder of the figures.
    """
    link = Path(os.path.relpath(figures, place)).as_posix()

    def replace(match):
        if name := match["table"]:
            if name not in TABLES:
                raise UserError(f"a page in {place} asks for the table {name!r}; there are {', '.join(TABLES)}")
            content = TABLES[name](results, folder) or f"No results for the table '{name}' yet."
        elif (figures / f"{match['figure']}.png").exists():
            content = f"![{match['caption']}]({link}/{match['figure']}.png)"
        else:
            content = f"No results for the figure '{match['figure']}' yet."
        return f"{match['begin']}\n{content}\n\n<!-- end -->"

    def say(match):
        of = re.fullmatch(r"(\S+) / (\S+) (\S+)", " ".join(match["pair"].split()))
        if not of or not match[3]:
            raise UserError(f"a page in {place} has a verdict without its form or its end: {match['pair']!r}")
        return f"{match[1]}{verdict_in_words(results, *of.groups())}{match[3]}"

    return SENTENCE.sub(say, MARKERS.sub(replace, text))


def own_page(results: Results, folder: Path, figures: Path) -> str:
    """The text, to be filled, of a page with every figure and every table that has something of training results."""
    names = [f"figure {path.stem}: {path.stem}" for path in sorted(figures.glob("*.png"))]
    tables = {name: make for name, make in TRAINING.items() if not name.endswith("-main")}
    names += [f"table {name}" for name, make in tables.items() if make(results, folder)]
    return "# Results\n\n" + "".join(f"<!-- {name} -->\n<!-- end -->\n\n" for name in names)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout that holds the results and the pages")
    parser.add_argument("--results", type=Path, help="a folder of your own results, as export.py --results wrote it")
    parser.add_argument("--tables", action="store_true", help="write the tables only")
    with one_line_errors():
        make_pages(parser.parse_args())
    return 0


def make_pages(options: argparse.Namespace) -> None:
    """Figures and tables. Raises UserError."""
    folder = options.root / "benchmarks"
    figures = (options.results or folder) / "figures"
    results = load(options.results or folder / "results")
    if options.results and not results:
        raise UserError(f"no CSV files of export.py in {options.results}")
    with with_own_algorithms(results if options.results else {}):
        if not options.tables:
            try:
                from benchmarks.figures import draw_figures
            except ImportError:
                raise UserError("figures need matplotlib: pip install '.[plot]'") from None
            with writing(figures):
                written = draw_figures(results, figures)
            print("\n".join(f"figure: {path}" for path in written) or "no results to draw")
        if options.results:
            texts = {options.results / "results.md": own_page(results, folder, figures)}
        else:
            texts = {page: page.read_text() for page in pages(options.root)}
        for page, text in texts.items():
            new = filled(text, page.parent, results, folder, figures)
            if new != text:
                with writing(page):
                    page.write_text(new)
                print(f"tables: {page}")


if __name__ == "__main__":
    sys.exit(main())
