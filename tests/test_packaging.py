import ast
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from prompt_task.few_shot_data import DatasetSpec

ROOT = Path(__file__).resolve().parents[1]
DATASETS = sorted((ROOT / "configs" / "dataset").glob("*.yaml"))

# As published; a leading blank is part of the word.
FIVE = (" terrible", " bad", " okay", " good", " great")
TWO = (" terrible", " great")
VERBALIZERS = {
    "sst-2": TWO,
    "yelp-2": TWO,
    "mr": TWO,
    "cr": TWO,
    "reviews": TWO,
    "sst-5": FIVE,
    "yelp-5": FIVE,
    "agnews": ("World", "Sports", "Business", "Tech"),
    "subj": (" subjective", " objective"),
    "trec": (" Description", " Entity", " Expression", " Human", " Location", " Number"),
    "yahoo": (
        "culture", "science", "health", "education", "computer",
        "sports", "business", "music", "family", "politics",
    ),
    "dbpedia": (
        " Company", " Education", " Artist", " Sports", " Office", " Transportation", " Building",
        " Natural", " Village", " Animal", " Plant", " Album", " Film", " Written",
    ),
}  # fmt: skip
MASKED_TEMPLATES = {"agnews": "<mask> {prompt} {sentence}", "dbpedia": "{prompt} <mask> : {sentence}"}


def setup_lists() -> dict[str, list[str]]:
    """The lists of requirements in setup.py."""
    lists = {}
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            lists[node.targets[0].id] = ast.literal_eval(node.value)
    return lists


def pins() -> Iterator[tuple[str, Version]]:
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            yield canonicalize_name(name), Version(version)


class TestDatasets:
    def test_all_are_there(self):
        assert {path.stem for path in DATASETS} == set(VERBALIZERS)

    @pytest.mark.parametrize("path", DATASETS, ids=lambda path: path.stem)
    def test_loads_as_published(self, path):
        spec = DatasetSpec.from_yaml(path)
        assert spec.name == path.stem
        assert spec.verbalizers == VERBALIZERS[spec.name]
        assert spec.masked_template == MASKED_TEMPLATES.get(spec.name, "{sentence} {prompt} <mask> .")
        assert spec.left_to_right_template == "{sentence} {prompt}"
        assert (spec.hub_id is None) == (spec.name == "reviews")

    @pytest.mark.parametrize("path", DATASETS, ids=lambda path: path.stem)
    def test_begins_with_its_command_and_explains_every_key(self, path):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[1].startswith(f"#   python prompt_task/run_fsc.py dataset={path.stem}")
        for before, line in pairwise(lines):
            if re.match(r"[a-z_]+:", line):
                assert before.startswith("# "), line


class TestRequirements:
    def test_no_package_is_pinned_twice(self):
        names = [name for name, _ in pins()]
        assert len(set(names)) == len(names)

    @pytest.mark.parametrize("group", ["DEPENDENCIES", "DEVELOPMENT"])
    def test_every_range_holds_its_pin(self, group):
        pinned = dict(pins())
        for text in setup_lists()[group]:
            requirement = Requirement(text)
            assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, text

    def test_every_range_has_a_lower_bound(self):
        for text in (*setup_lists()["DEPENDENCIES"], *setup_lists()["DEVELOPMENT"]):
            assert ">=" in text


def test_the_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["preferred-citation"]
    assert paper["title"] == "Preference-grounded Token-level Guidance for Language Model Fine-tuning"
    assert paper["identifiers"][0]["value"] == "arXiv:2306.00398"
    families = [author["family-names"] for author in paper["authors"]]
    assert families == ["Yang", "Zhang", "Xia", "Feng", "Xiong", "Zhou"]


def test_the_versions_agree():
    version = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]
    assert f'version="{version}"' in (ROOT / "setup.py").read_text()
    assert (
        f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
        or f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    )


@pytest.mark.parametrize(
    "script", ["install_packages.sh", ".ci/run", *sorted(p.name for p in ROOT.glob("scripts/*.sh"))]
)
def test_shell_scripts_are_well_formed_and_stop_at_errors(script):
    path = ROOT / script if (ROOT / script).exists() else ROOT / "scripts" / script
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert "\nset -euo pipefail\n" in path.read_text()


@pytest.mark.parametrize("mark", ["token-guidance-made-this.txt", "token-guidance-installed.txt"])
def test_the_environment_of_another_checkout_is_left_as_it_is(tmp_path, mark):
    mine, other, venv = tmp_path / "mine", tmp_path / "other", tmp_path / "venv"
    for checkout in (mine, other):
        (checkout / "scripts").mkdir(parents=True)
        for name in ("install_packages.sh", "scripts/help.sh", "requirements.txt", "setup.py", "pyproject.toml"):
            shutil.copyfile(ROOT / name, checkout / name)
    venv.mkdir()
    place = str(other) if mark.endswith("this.txt") else f"checkout {other}, environment {venv}"
    (venv / mark).write_text(f"{place}\n")
    (venv / "theirs").write_text("x")
    command = ["bash", str(mine / "install_packages.sh")]
    # No package index and no Python: were it to go on, it would fail otherwise.
    environment = os.environ | {"VENV": str(venv), "PYTHON": str(tmp_path / "none"), "PIP_NO_INDEX": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    expected = f"install: error: {venv} is the environment of the checkout {other}; choose another VENV\n"
    assert (done.returncode, done.stderr) == (1, expected)
    assert sorted(path.name for path in venv.iterdir()) == sorted([mark, "theirs"])
    shutil.rmtree(other)  # nobody's any more
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "is the environment of the checkout" not in done.stderr
