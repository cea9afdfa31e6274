import pytest

from common.training import inputs
from common.training.inputs import changed_inputs, file_hash, fingerprint, fingerprints


def test_of_a_model_what_is_read_counts_and_nothing_else(tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "pytorch_model.bin"):
        (tmp_path / name).write_text(name)
    before = fingerprint(str(tmp_path))
    assert list(before) == ["config.json", "model.safetensors", "tokenizer.json"]
    (tmp_path / "README.md").write_text("other")
    assert fingerprint(str(tmp_path)) == before
    (tmp_path / "model.safetensors").write_text("other")
    assert changed_inputs({"model": before}, {"model": fingerprint(str(tmp_path))}) == ["model (its model.safetensors)"]


def test_of_a_folder_of_data_every_file_counts(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "a.csv").write_text("1")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "b").write_text("2")
    before = fingerprint(str(tmp_path))
    assert list(before) == ["part/a.csv"]
    (tmp_path / "c.csv").write_text("3")
    (tmp_path / "part" / "a.csv").unlink()
    assert changed_inputs({"data": before}, {"data": fingerprint(str(tmp_path))}) == ["data (its c.csv and 1 more)"]


def test_a_large_file_is_known_by_its_size_and_pieces_of_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "_PIECE", 4)
    monkeypatch.setattr(inputs, "_PIECES", 3)
    path = tmp_path / "large"

    def hash_of(content):
        path.write_bytes(content)
        return file_hash(path)

    content = bytes(range(40))
    other = [bytes([255 if i == place else byte for i, byte in enumerate(content)]) for place in range(40)]
    seen = [place for place in range(40) if hash_of(other[place]) != hash_of(content)]
    assert seen == [0, 1, 2, 3, 18, 19, 20, 21, 36, 37, 38, 39]
    assert hash_of(content + b"x") != hash_of(content)
    assert all(hash_of(content[:12]) != hash_of(other[place][:12]) for place in range(12))  # small: all of it


def test_the_code_of_a_function_and_the_commit_of_the_hub_count(tmp_path, monkeypatch):
    (tmp_path / "my_taste.py").write_text("def taste(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert fingerprint("my_taste:taste") == {"my_taste.py": file_hash(tmp_path / "my_taste.py")}
    monkeypatch.setattr(inputs.constants, "HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "models--some--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc\n")
    assert fingerprint("some/model") == {"model's commit": "abc"}
    assert list(fingerprint("builtin/causal-lm"))


@pytest.mark.parametrize(
    "named", ["nowhere.csv", "no_such_module:f", "a..b:c", "some/model/x", "\x00", "evaluate:rouge"]
)
def test_what_is_not_there_has_no_fingerprint(named):
    assert fingerprints({"it": named, "unset": None}) == {}
