import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.training import files
from common.training.files import (
    JsonLinesWriter,
    json_text,
    restore_folder,
    write_folder_atomic,
    write_json_atomic,
    write_jsonl_atomic,
    write_text_atomic,
)


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def full_disk(monkeypatch):
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", no_space)


class TestJson:
    def test_numbers_that_json_lacks_become_null(self):
        assert json.loads(json_text({"a": float("nan"), "b": [float("inf"), 1.5], "c": -float("inf")})) == {
            "a": None,
            "b": [None, 1.5],
            "c": None,
        }

    def test_numpy_and_torch_scalars_and_paths_are_plain_values(self):
        value = {"a": np.float32(0.5), "b": np.int64(3), "c": torch.tensor(2.0), "d": np.float64("nan"), "e": Path("x")}
        assert json.loads(json_text(value)) == {"a": 0.5, "b": 3, "c": 2.0, "d": None, "e": "x"}

    def test_a_value_without_json_form_is_an_error(self):
        with pytest.raises(TypeError, match="set"):
            json_text({"a": {1, 2}})

    def test_any_string_survives(self, tmp_path):
        text = 'quote " brace } newline \n tab \t nul \0 عربي \u202e é \U0001f600 lone \udc80'
        write_json_atomic(tmp_path / "x.json", {"text": text})
        assert json.loads((tmp_path / "x.json").read_bytes().decode("utf-8")) == {"text": text}


class TestText:
    def test_writes_the_text_as_it_is_and_nothing_else(self, tmp_path):
        write_text_atomic(tmp_path / "a.txt", "one\r\ntwo\n é")
        assert (tmp_path / "a.txt").read_bytes() == b"one\r\ntwo\n \xc3\xa9"
        assert os.listdir(tmp_path) == ["a.txt"]

    def test_jsonl_has_one_object_a_line(self, tmp_path):
        write_jsonl_atomic(tmp_path / "a.jsonl", [{"x": "a\nb"}, {"x": 2}])
        assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().split("\n")[:-1]] == [
            {"x": "a\nb"},
            {"x": 2},
        ]

    def test_a_full_disk_leaves_the_old_content_and_no_remains(self, tmp_path, full_disk):
        (tmp_path / "a.txt").write_text("old")
        with pytest.raises(UserError, match=r"cannot write .*a\.txt: No space left on device"):
            write_text_atomic(tmp_path / "a.txt", "new")
        assert contents(tmp_path) == {"a.txt": "old"}

    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(UserError, match=r"cannot write .*missing/a\.txt: No such file or directory"):
            write_text_atomic(tmp_path / "missing" / "a.txt", "x")

    def test_new_files_have_the_usual_permissions(self, tmp_path):
        (tmp_path / "usual").write_text("")
        write_text_atomic(tmp_path / "ours", "")
        assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


class TestFolder:
    def test_replaces_the_whole_folder(self, tmp_path):
        target = tmp_path / "model"
        target.mkdir()
        (target / "stale").write_text("old")
        with write_folder_atomic(target) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "a").write_text("new")
        assert contents(tmp_path) == {"model/sub/a": "new"}

    def test_the_old_folder_is_in_place_while_the_new_one_is_filled(self, tmp_path):
        target = tmp_path / "model"
        target.mkdir()
        (target / "a").write_text("old")
        with write_folder_atomic(target) as folder:
            (folder / "a").write_text("new")
            assert (target / "a").read_text() == "old"

    def test_an_error_in_the_block_passes_and_leaves_the_old_folder(self, tmp_path):
        target = tmp_path / "model"
        target.mkdir()
        (target / "a").write_text("old")
        with pytest.raises(ZeroDivisionError), write_folder_atomic(target) as folder:
            (folder / "a").write_text("new")
            raise ZeroDivisionError
        assert contents(tmp_path) == {"model/a": "old"}
        assert os.listdir(tmp_path) == ["model"]

    def test_a_full_disk_leaves_the_old_folder(self, tmp_path, full_disk):
        target = tmp_path / "model"
        target.mkdir()
        (target / "a").write_text("old")
        with (
            pytest.raises(UserError, match=r"cannot write .*model: No space left"),
            write_folder_atomic(target) as folder,
        ):
            (folder / "a").write_text("new")
        assert contents(tmp_path) == {"model/a": "old"}

    def test_remains_of_a_killed_writer_are_cleared(self, tmp_path):
        for _ in range(2):
            subprocess.run(
                [
                    sys.executable,
                    "-c",
                    "import os, sys\n"
                    "from common.training.files import write_folder_atomic\n"
                    "with write_folder_atomic(sys.argv[1]) as folder:\n"
                    "    (folder / 'half').write_text('half')\n"
                    "    os.kill(os.getpid(), 9)\n",
                    str(tmp_path / "model"),
                ],
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
            )
            assert not (tmp_path / "model").exists()
        with write_folder_atomic(tmp_path / "model") as folder:
            (folder / "whole").write_text("whole")
        assert contents(tmp_path) == {"model/whole": "whole"}

    @pytest.mark.parametrize("by_reader", [True, False])
    @pytest.mark.parametrize("kill_before_rename", [0, 1, 2])
    def test_a_kill_between_the_renames_leaves_the_old_or_the_new_folder(
        self, tmp_path, monkeypatch, kill_before_rename, by_reader
    ):
        class Killed(BaseException):
            pass

        target = tmp_path / "model"
        target.mkdir()
        (target / "a").write_text("old")
        rename, rmtree = os.rename, files.shutil.rmtree
        calls: list[str] = []

        def dying_rename(source, destination):
            if len(calls) == kill_before_rename:
                raise Killed
            calls.append(source)
            rename(source, destination)

        def dying_rmtree(path, **options):
            raise Killed

        monkeypatch.setattr(files.os, "rename", dying_rename)
        monkeypatch.setattr(files.shutil, "rmtree", dying_rmtree)
        with pytest.raises(Killed), write_folder_atomic(target) as folder:
            (folder / "a").write_text("new")
        monkeypatch.setattr(files.os, "rename", rename)
        monkeypatch.setattr(files.shutil, "rmtree", rmtree)

        expected = {"a": "new" if kill_before_rename == 2 else "old"}
        if by_reader:
            restore_folder(target)
        else:
            with pytest.raises(ZeroDivisionError), write_folder_atomic(target):
                raise ZeroDivisionError
        assert contents(target) == expected
        with write_folder_atomic(target) as folder:
            (folder / "a").write_text("newer")
        assert contents(tmp_path) == {"model/a": "newer"}

    def test_a_place_that_cannot_be_written_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        complaint = pytest.raises(UserError, match=r"cannot write .*file/model: Not a directory")
        with complaint, write_folder_atomic(tmp_path / "file" / "model"):
            pass


class TestJsonLines:
    def test_every_line_is_readable_at_once_and_opening_again_appends(self, tmp_path):
        path = tmp_path / "a.jsonl"
        with JsonLinesWriter(path) as writer:
            writer.write({"a": 1})
            assert path.read_text() == '{"a": 1}\n'
        with JsonLinesWriter(path) as writer:
            writer.write({"a": float("nan")})
            writer.sync()
        assert path.read_text() == '{"a": 1}\n{"a": null}\n'

    def test_a_torn_last_line_is_removed(self, tmp_path):
        path = tmp_path / "a.jsonl"
        path.write_text('{"a": 1}\n{"a": ')
        with JsonLinesWriter(path) as writer:
            writer.write({"a": 2})
        assert path.read_text() == '{"a": 1}\n{"a": 2}\n'

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
    def test_a_full_disk_is_one_clear_line(self):
        with JsonLinesWriter("/dev/full") as writer, pytest.raises(UserError, match="cannot write /dev/full: No space"):
            writer.write({"a": 1})
