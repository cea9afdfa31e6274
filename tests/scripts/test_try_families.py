"""Families of transformers in every role: a part of what docs/models.md says, found again, and (slow) the whole."""

import re
from pathlib import Path

import pytest

from common.errors import UserError
from scripts.try_families import FAMILIES, ROLES, main, table, try_family

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
# Each was a traceback, a silent loss or a refusal without need once, in one of its roles.
ONCE_WRONG = {
    "falcon_h1": "reward model", "gemma3": "summary policy", "gemma3n_text": "summary policy",
    "t5gemma": "reward model", "bigbird_pegasus": "reward model", "fsmt": "reward model",
    "reformer": "summary policy", "xlm": "prompt policy", "xlnet": "task LM", "bert-generation": "task LM",
    "roberta": "summary policy", "prophetnet": "summary policy", "bart": "prompt policy",
    "bert (masked)": "reward model",
}  # fmt: skip


def written(text):
    """What a table says: results by family and role, refusals with their lines."""
    notes = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    found = {}
    for line in re.findall(r"^\| (.*) \|$", text, re.MULTILINE):
        family, *cells = line.split(" | ")
        cells = [re.sub(r"^refused \((\d+)\)$", lambda m: f"refused: {notes[m[1]]}", cell) for cell in cells]
        found[family] = dict(zip(ROLES, cells, strict=True))
    assert list(found.pop("family").values()) == list(ROLES)
    found.pop("---")
    return found


def test_the_table_of_the_docs_has_every_family_and_no_defect():
    text = DOCS.read_text(encoding="utf-8")
    assert re.search(
        rf"^transformers \d+\.\d+\.\d+, {len(FAMILIES)} families, \d{{4}}-\d\d-\d\d\.$", text, re.MULTILINE
    )
    found = written(text)
    assert list(found) == list(FAMILIES)
    results = [result for roles in found.values() for result in roles.values()]
    assert all(result.startswith(("works", "refused: ")) for result in results)
    assert written(table(found)) == found


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_common_families_in_all_roles(family):
    assert try_family(family) == written(DOCS.read_text(encoding="utf-8"))[family]


def test_roles_in_which_a_family_was_wrong_once():
    said = written(DOCS.read_text(encoding="utf-8"))
    for family, role in ONCE_WRONG.items():
        assert try_family(family, [role]) == {role: said[family][role]}, family


def test_a_wrong_name_is_one_line():
    with pytest.raises(UserError, match=r"^no family 'lama'; did you mean 'llama'"):
        main(["lama"])


@pytest.mark.slow
def test_all_families_do_what_the_docs_say():
    said = written(DOCS.read_text(encoding="utf-8"))
    assert {family: try_family(family) for family in FAMILIES} == said
