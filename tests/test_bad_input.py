"""Whatever a user types or a file holds: a result or one clear line, never another exception, never half a file.

Property-based: hypothesis looks for input that breaks the rule, and shrinks what it finds.
"""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from chat_task import command_line as chat_command
from chat_task.data import load_preferences
from chat_task.ranking_rows import Columns
from chat_task.settings import ChatSettings
from common.errors import UserError
from common.language_models.replies import ReplyFormat
from common.reply_rewards import READING_FILE, RewardReading
from common.reporting.markdown import markdown_text
from common.reporting.report import Report, TokenRewards
from common.reporting.run_table import never_begun
from common.token_reward_model import TokenRewardModel
from common.training.command_line import read_yaml
from common.training.data_files import unmarked_cell
from common.training.files import write_jsonl_atomic
from common.training.sweep_run import Plan
from prompt_task import command_line as prompt_command
from prompt_task import evaluate_prompts
from prompt_task.few_shot_data import DatasetSpec, fill_template, read_examples
from prompt_task.settings import FewShotSettings
from scripts import collect_results, credit_accuracy
from sum_task import command_line as sum_command
from sum_task.data import load_splits
from sum_task.settings import SummarizationSettings
from tests.sum_task.tiny import save_llama, word_tokenizer
from tests.tiny_runs import published_options

# What stands in the project's own tables, and what LaTeX calls a mark.
LATEX = {
    "\\usepackage", "\\providecommand", "\\toprule", "\\midrule", "\\bottomrule", "\\hline", "\\begin", "\\end",
    "\\caption", "\\label", "\\textbackslash", "\\textasciitilde", "\\textasciicircum", "\\space",
}  # fmt: skip
MARKS = "|`*[](){}<>!&$\\_%#~^@=+-'\"\t\r\n\x1b\x00\u202eahtps:/.w"

# How many times as many cases: see `test_all_of_it_with_thousands_of_cases`.
TIMES = int(os.environ.get("PROPERTY_TIMES", "1"))


def cases(count: int) -> settings:
    return settings(
        max_examples=count * TIMES, deadline=None, derandomize=TIMES == 1,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )  # fmt: skip


search = cases(150)

# Quotes, braces, slots, line ends, controls, right-to-left marks, what looks like HTML, shell or Hydra's grammar.
AWKWARD = [
    "", " ", "\n", "\r\n", "\t", "\x00", "\x1b[31m", "\u202e", "\u2028", "\ufeff", "\ud800", "'", '"', "`", "$(id)",
    ";", "{", "}", "{sentence}", "{prompt}", "<mask>", "{0}", "%s", "<script>alert(1)</script>", "&lt;", "]]>", "${x}",
    "${oc.env:HOME}", "null", "~", "-1", "1e999", "nan", "[1,", "a=b", "a,b", "\\", "ש", "e\u0301", "😀", "../../x",
]  # fmt: skip
awkward_text = st.one_of(
    st.sampled_from(AWKWARD),
    st.text(max_size=30),
    st.lists(st.sampled_from(AWKWARD) | st.text(max_size=5), max_size=6).map("".join),
)
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | awkward_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def result_or_one_line(function, *args, **kwargs) -> Any:
    """What the function returns, or None where it refuses; the refusal fits on one line once blanks are joined."""
    try:
        return function(*args, **kwargs)
    except UserError as error:
        assert str(error).strip(), "a refusal that says nothing"
        return None


class TestOptions:
    @cases(60)
    @given(st.data())
    def test_any_value_of_any_option(self, data):
        for kind, base in (
            (FewShotSettings, published_options()),
            (SummarizationSettings, read_yaml(sum_command.DEFAULTS) | {"dataset_name": "xsum"}),
            (ChatSettings, read_yaml(chat_command.DEFAULTS) | {"dataset_name": "x"}),
        ):
            options = {key: value for key, value in base.items() if key != "dataset"}
            key = data.draw(st.sampled_from(sorted(options)) | awkward_text, label="option")
            value = data.draw(plain_values, label="value")
            made = result_or_one_line(kind.from_mapping, options | {key: value})
            if made is not None:
                assert key in options

    @cases(25)
    @given(st.lists(awkward_text | st.builds("{}={}".format, st.sampled_from(["top_k", "dataset", "x"]), awkward_text)))
    def test_any_words_on_the_command_line_of_the_prompt_task(self, words):
        result_or_one_line(prompt_command.read_command, words)

    @cases(100)
    @given(st.lists(awkward_text | st.builds("--{}={}".format, st.sampled_from(["seed", "preference"]), awkward_text)))
    def test_any_words_on_the_command_line_of_summarization(self, words):
        words = [word for word in words if word not in ("-h", "--help")]
        result_or_one_line(sum_command.read_command, words)

    @search
    @example(b"'0'")
    @given(st.binary(max_size=200) | st.builds(lambda v: yaml.safe_dump(v).encode(), plain_values))
    def test_any_content_of_a_configuration_file(self, tmp_path, content):
        path = tmp_path / "any.yaml"
        path.write_bytes(content)
        result_or_one_line(sum_command.read_command, [f"--config={path}"])
        result_or_one_line(DatasetSpec.from_yaml, path)

    @search
    @given(st.dictionaries(st.sampled_from(["name", "verbalizers", "masked_template"]) | awkward_text, plain_values))
    def test_any_data_set(self, values):
        whole = {"name": "x", "verbalizers": ["a", "b"], "masked_template": "{sentence} {prompt} <mask>"}
        whole |= {"left_to_right_template": "{sentence} {prompt}"}
        result_or_one_line(DatasetSpec.from_mapping, whole | values)


def encoded(text: str) -> bytes:
    """As a careless program would write it: lone surrogates too."""
    return text.encode("utf-8", "surrogatepass")


def as_csv(rows: list[list[str]]) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file).writerows([[cell.replace("\x00", "") for cell in row] for row in rows])
    return encoded(file.getvalue())


cells = awkward_text | st.integers().map(str) | st.just("x" * 200_000)
rows_of_cells = st.lists(st.lists(cells, max_size=4), max_size=5)
objects = st.dictionaries(st.sampled_from(["document", "summary"]) | awkward_text, plain_values, max_size=3)


def contents_of(right: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Any bytes, any JSON, and lines of objects of which some values are not what they should be."""
    damage = st.dictionaries(st.sampled_from([*right]) | awkward_text, plain_values, max_size=2)
    lines = st.lists(damage.map(lambda wrong: json.dumps(right | wrong)), max_size=3)
    return (
        st.binary(max_size=100)
        | st.sampled_from([b"[" * 20_000, b"9" * 5000, b'{"text": "a\xe2\x80\xa8b", "spans": [[0, 1]]}'])
        | plain_values.map(lambda value: json.dumps(value).encode())
        | lines.map(lambda rows: encoded("\n".join(rows)))
    )


class TestDataFiles:
    @search
    @given(st.binary(max_size=300) | rows_of_cells.map(lambda rows: encoded("\n".join(map("\t".join, rows)))))
    def test_any_content_of_a_tsv_file(self, tmp_path, content):
        path = tmp_path / "train.tsv"
        path.write_bytes(content)
        result_or_one_line(read_examples, path, 2)

    @search
    @given(st.lists(st.tuples(cells, st.sampled_from(["0", "1", "2", "", "one", "1.0"]))))
    def test_examples_that_are_read_are_those_of_the_file(self, tmp_path, rows):
        path = tmp_path / "train.tsv"
        text = "sentence\tlabel\n" + "".join(f"{sentence}\t{label}\n" for sentence, label in rows)
        path.write_bytes(encoded(text))
        found = result_or_one_line(read_examples, path, 2, "unquoted")
        if found is not None:
            examples, left_out = found
            assert [(e.text, str(e.label)) for e in examples] == [row for row in rows if row[0].strip()]
            assert left_out == len(rows) - len(examples)

    @search
    @given(
        st.sampled_from(["csv", "json", "jsonl"]),
        st.binary(max_size=300)
        | st.lists(objects).map(lambda rows: json.dumps(rows).encode())
        | st.lists(plain_values, max_size=4).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
        | rows_of_cells.map(lambda rows: as_csv([["document", "summary"], *rows])),
    )
    def test_any_content_of_a_summarization_file(self, tmp_path, ending, content):
        path = tmp_path / f"rows.{ending}"
        path.write_bytes(content)
        splits = result_or_one_line(load_splits, train_file=str(path), validation_file=str(path))
        if splits is not None:
            assert all(row.source.strip() and row.reference.strip() for row in splits.train)


class TestOtherFiles:
    """Files of programs beside the runs."""

    @search
    @given(contents_of({"text": "a b", "spans": [[0, 1]], "prompt": "p", "right": ["c"]}))
    def test_any_content_of_a_file_of_texts_with_spans(self, tmp_path, content):
        path = tmp_path / "spans.jsonl"
        path.write_bytes(content)
        for row in result_or_one_line(credit_accuracy.read_rows, str(path), None) or []:
            assert all(0 <= start < end <= len(row.text) for start, end in row.spans)

    @search
    @given(contents_of({"prompt": "p", "completions": ["a", "b"], "scores": [1, 2], "wrong": [[[0, 1]], []]}))
    def test_any_content_of_a_file_of_rankings(self, tmp_path, content):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(content)
        result_or_one_line(load_preferences, columns=Columns(spans="wrong"), train_file=str(path), validation_share=0.5)

    @search
    @given(contents_of({"prompt": "p"}), st.sampled_from(["csv", "json", "jsonl", "txt", "parquet"]))
    def test_any_content_of_a_file_of_prompts(self, tmp_path, content, ending):
        path = tmp_path / f"prompts.{ending}"
        path.write_bytes(content)
        found = result_or_one_line(evaluate_prompts.read_prompts, None, str(path))
        assert found is None or all(isinstance(prompt, str) for prompt in found)

    @search
    @given(contents_of({"task": "fsc", "working_directory": "/", "runs": [{"name": "a/b/c", "command": ["x"]}]}))
    def test_any_content_of_a_sweep_s_plan(self, tmp_path, content):
        for name in ("plan.json", "run-0000.json"):
            (tmp_path / name).write_bytes(content)
        plan = result_or_one_line(Plan.read, tmp_path)
        if plan is not None:
            never_begun([plan], set())


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    """The folder of a reward model of replies, tokenizer, format and reading included."""
    folder = tmp_path_factory.mktemp("saved")
    model = TokenRewardModel.from_backbone(save_llama(folder / "backbone", word_tokenizer()), head="likelihood")
    model.save_pretrained(folder / "model")
    ReplyFormat(word_tokenizer(), False, "{prompt}", 8, 8).save(folder / "model")
    RewardReading("token").save(folder / "model")
    return folder / "model"


class TestModelFolders:
    """What was saved by somebody else, or torn."""

    FILES = ("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json",
             "tokenizer.json", "tokenizer_config.json", "reply_format.json", READING_FILE)  # fmt: skip

    @cases(60)
    @given(st.data())
    def test_any_content_of_any_file(self, saved_model, tmp_path, data):
        name = data.draw(st.sampled_from(self.FILES))
        try:
            right = json.loads((saved_model / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            right = {"metadata": {}, "weight_map": {}}
        folder = tmp_path / "model"
        shutil.copytree(saved_model, folder)
        try:
            taken = {"is_encoder_decoder": True} if name == "reply_format.json" else {}  # what the loader itself says
            (folder / name).write_bytes(data.draw(contents_of(right | taken)))
            model = result_or_one_line(TokenRewardModel.from_pretrained, folder)
            if model is not None:
                result_or_one_line(model.score_texts, ["the flood"], ["a town"])
        finally:
            shutil.rmtree(folder)


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}


class TestTexts:
    @search
    @given(awkward_text, awkward_text)
    def test_what_fills_a_template_is_data(self, sentence, prompt):
        filled = fill_template("[{sentence}|{prompt}|<mask>]", sentence, prompt, "MASK")
        assert filled == f"[{sentence}|{prompt}|MASK]"

    @search
    @given(st.lists(awkward_text, min_size=1, max_size=4))
    def test_no_text_becomes_an_element_of_the_report(self, texts):
        def page(words: list[str]) -> Page:
            report = Report(words[0], words[-1], {"fact": words[0]})
            report.add_token_rewards("tokens", [TokenRewards(words, [0.5] * len(words), caption=words[0])])
            report.add_table("table", [{"column": word, words[0] or "x": word} for word in words], note=words[-1])
            report.add_details("details", {word: word for word in words})
            return Page(report.html())

        plain, found = page(["plain"] * len(texts)), page(texts)
        assert found.elements <= plain.elements | {"span"}  # the marks of what does not print
        assert found.attributes <= plain.attributes | {"class"}
        assert "script" not in found.elements

    @search
    @example("\ud800")
    @given(awkward_text | st.text(MARKS, max_size=20))
    def test_no_text_does_anything_in_a_table(self, text):
        [line] = markdown_text(text).splitlines() or [""]
        assert re.search(r"(?<!\\)(\\\\)*[|`*\[\]!$]|<|://|[\x00-\x1f\x7f\u202e]", line) is None, line
        [_, cell] = csv.reader(io.StringIO(collect_results.csv_text([{"a": text}]), newline=""))
        assert not cell or cell[0][:1] not in ("=", "+", "-", "@", "\t", "\r")
        assert unmarked_cell(cell[0] if cell else "") == text or text.startswith("'")
        named = {"task": "prompt", "data set": text, "guidance": text, "aggregation": text, "options": text, "n": 1}
        commands = set(re.findall(r"\\[A-Za-z]+", collect_results.latex([named])))
        assert commands <= LATEX, commands - LATEX

    @search
    @given(st.lists(st.dictionaries(awkward_text, awkward_text, max_size=3), max_size=4))
    def test_any_text_survives_a_file_of_json_lines(self, tmp_path, rows):
        path = tmp_path / "rows.jsonl"
        write_jsonl_atomic(path, rows)
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        assert [json.loads(line) for line in lines] == rows


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_all_of_it_with_thousands_of_cases():
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    subprocess.run(words, env=os.environ | {"PROPERTY_TIMES": "20"}, check=True)
