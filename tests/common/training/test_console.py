"""The console command, in a checkout and installed, and `--help` of every script."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from common.errors import UserError
from common.training import console
from common.training.console import PROGRAMS, ROOT, as_typed, main

SCRIPTS = [
    path.relative_to(ROOT)
    for folder in ("scripts", "scripts/benchmarks", "prompt_task", "sum_task", "chat_task")
    for path in sorted((ROOT / folder).glob("*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
]
SHELL = [Path("install_packages.sh"), *(path.relative_to(ROOT) for path in sorted(ROOT.glob("scripts/**/*.sh")))]
SOURCED = ("help.sh", "start_sweep.sh")


def test_every_program_is_there_and_every_script_of_users_is_a_program():
    files = {file for file, _ in PROGRAMS.values()}
    assert all((ROOT / file).is_file() for file in files)
    own = {"scripts/build_builtin_models.py", "scripts/try_families.py"}  # they write into a checkout
    assert {str(path) for path in SCRIPTS if "benchmarks" not in path.parts} - own == files


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_help_of_a_program_explains_and_does_nothing_else(script, tmp_path, monkeypatch, capsys):
    module = importlib.import_module(".".join(script.with_suffix("").parts))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **options: pytest.fail(f"--help starts {words}"))
    try:
        code = module.main()
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    assert (code or 0, err, list(tmp_path.iterdir())) == (0, "", [])
    assert len(out.splitlines()) >= 5


@pytest.mark.parametrize("script", [path for path in SHELL if path.name not in SOURCED], ids=str)
def test_help_of_a_shell_script_needs_nothing_but_a_shell(script, tmp_path):
    (tmp_path / "bin").mkdir()
    for name in ("sed", "dirname", "bash"):
        (tmp_path / "bin" / name).symlink_to(
            Path("/usr/bin", name) if Path("/usr/bin", name).exists() else f"/bin/{name}"
        )
    done = subprocess.run(
        [tmp_path / "bin" / "bash", ROOT / script, "--help"],
        cwd=tmp_path, env={"PATH": str(tmp_path / "bin")}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert f"bash {script}" in done.stdout
    assert not done.stdout.startswith("#")
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_a_program_that_is_not_there_is_one_line_with_its_nearest():
    with pytest.raises(UserError, match="no program 'colect'; did you mean 'collect'"):
        main(["colect"])


def test_the_overview_names_every_program(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    main(["--help"])
    assert capsys.readouterr().out == out
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == list(PROGRAMS)


def test_words_are_handed_on(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["token-guidance"])
    seen = []
    monkeypatch.setattr(console.runpy, "run_module", lambda module, **options: seen.append((module, sys.argv[1:])))
    assert main(["sweep", "fsc", "--seeds", "0-2"]) == 0
    assert seen == [("scripts.sweep", ["fsc", "--seeds", "0-2"])]


def test_commands_are_printed_as_they_are_typed_where_they_are_read(tmp_path, monkeypatch):
    text = "python scripts/collect_results.py DIR, python sum_task/run_sum.py, bash scripts/sweep_fsc.sh --help"
    monkeypatch.chdir(ROOT)
    assert as_typed(text) == text
    monkeypatch.chdir(ROOT / "prompt_task")
    assert as_typed("python prompt_task/run_fsc.py --help") == "python run_fsc.py --help"
    monkeypatch.setattr(console, "ROOT", tmp_path)  # as in site-packages
    assert as_typed(text) == "token-guidance collect DIR, token-guidance sum, token-guidance sweep fsc --help"


ALL_HELP = """
from common.training.console import PROGRAMS, main
for name in PROGRAMS:
    print("PROGRAM", name, flush=True)
    try:
        main([name, "--help"])
    except SystemExit as ended:
        assert not ended.code
"""


@pytest.mark.slow
def test_installed_all_programs_work_from_any_folder(tmp_path):
    """`pip install .` without the packages it needs, which this environment has, and then the commands elsewhere."""
    project, place = tmp_path / "project", tmp_path / "elsewhere"
    place.mkdir()
    packages = ("chat_task", "common", "configs", "prompt_task", "scripts", "sum_task")
    for name in packages:
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    own = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    # The packages of this environment; a .pth file in it, which may lead to the checkout, is not read.
    (tmp_path / "venv" / "lib" / version / "site-packages" / "packages.pth").write_text(f"{own}\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NLTK_DATA": str(Path(sys.prefix, "nltk_data"))}

    def run(*words, cwd=place, code=0):
        done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == code, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", ".", cwd=project)

    def token_guidance(*words, code=0):
        return run(tmp_path / "venv" / "bin" / "token-guidance", *words, code=code)

    where = run(python, "-c", "import common, scripts, configs; print(common.__file__)")
    assert where.startswith(str(tmp_path / "venv"))
    helps = run(python, "-c", ALL_HELP).split("PROGRAM ")[1:]
    assert len(helps) == len(PROGRAMS)
    for text in helps:
        assert f"token-guidance {text.split()[0]} " in text, text
        assert not re.search("(python|bash) [a-z_]+/", text), text
    small = [
        "--config-name=builtin", "max_train_steps=2", "rew_max_train_steps=1", "rew_num_train_epochs=1",
        "reward_pool_size=0", "num_validation_prompts=1", "hidden_size=16", "device=cpu", "quiet=true",
    ]  # fmt: skip
    token_guidance("fsc", *small, "output_folder=fsc")
    assert "fsc/report.html" in token_guidance("fsc", *small, "output_folder=fsc", "resume=auto")
    token_guidance("evaluate-prompts", "--config-name=builtin", 'prompts=["good"]', "device=cpu")
    summaries = ["max_train_samples=8", "max_eval_samples=2", "max_predict_samples=2", "device=cpu", "quiet=true"]
    flags = [f"--{word}" for word in summaries]
    token_guidance("sum", "--config=configs/sum_noisy_builtin.yaml", *flags, "--output_dir=sum")
    token_guidance("chat", "--config=configs/chat_builtin.yaml", *flags[:2], *flags[3:], "--output_dir=chat")
    (place / "prefs.jsonl").write_text('{"prompt": "Write a review.", "chosen": "a great film", "rejected": "dull"}\n')
    assert '"tokens"' in token_guidance("score", "--model", "chat/reward_model", "--input", "prefs.jsonl")
    scored = token_guidance("score-summaries", "--model", "sum/reward_model", "--input", "sum/predictions.jsonl")
    assert "\t" in scored
    (place / "article.txt").write_text("A storm hit the town.")
    token_guidance("generate", "--model", "sum/policy", "--input", "article.txt", "--max_length", "4")
    config = "--config=configs/sum_noisy_builtin.yaml"
    swept = token_guidance("sweep", "sum", "--seeds", "0", "--output", "sweep", config, *summaries)
    assert "token-guidance collect" in swept
    assert "| 1 |" in token_guidance("collect", "sweep", "--output", "table")
    assert (place / "table" / "report.html").is_file()
    assert "seq2seq" in token_guidance("check-model", "builtin/seq2seq")
    missing = token_guidance("fsc", "base_path=nowhere", code=2)
    assert "token-guidance prepare-data --dataset=sst-2 --base_path=nowhere" in missing
    assert missing.count("\n") == 1
