"""README and docs: short, whole, and their notebook runs as it is written."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from common.training.console import PROGRAMS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOK = ROOT / "docs" / "first_steps.ipynb"


def test_the_readme_is_short_and_names_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for page in [*PAGES[1:], NOTEBOOK]:
        assert f"(docs/{page.name})" in text, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings], link


def test_programs_that_are_named_exist():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"token-guidance ([a-z][a-z-]*)", text))
    assert named and named <= set(PROGRAMS)


def cells(kind):
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


def test_the_notebook_shows_what_it_printed():
    assert [cell["execution_count"] for cell in cells("code")] == list(range(1, len(cells("code")) + 1))
    assert all(cell["outputs"] for cell in cells("code"))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    printed = []
    for cell in cells("code"):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile("".join(cell["source"]), "cell", "exec"), names)
        printed.append(out.getvalue())
    before, after = map(float, re.findall(r"after: .* (0\.\d+) before, (0\.\d+) after", printed[1])[0])
    assert before < 0.6 and after > before + 0.2
    last = printed[2].splitlines()[-1]  # of the likelihood head
    rewards = {token: float(reward) for token, reward in re.findall(r"(\S+) (\d\.\d+)", last)}
    assert sorted(rewards, key=rewards.__getitem__)[:2] == ["corvale", "began"]
