"""Installing WordNet, tried with one of two words."""

import hashlib
import os
import zipfile

import nltk.data
import pytest
from nltk.downloader import Downloader

from common.errors import UserError
from scripts import install_wordnet as module
from scripts.install_wordnet import NotThere, from_debian, from_nltk, install, lexnames_lines, main, reading_problem


def write_tiny_wordnet(folder):
    """The files of a WordNet that knows cars and automobiles, as Debian lays them out, without lexnames."""
    folder.mkdir(parents=True)
    header = "  1 WordNet 3.0 of two words\n"
    meaning = f"{len(header):08d} 06 n 02 car 0 automobile 0 000 | it has four wheels\n"
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{part}").write_text(header + (meaning if part == "noun" else ""))
        (folder / f"index.{part}").write_text(header)
        (folder / f"{part}.exc").write_text("")
    with open(folder / "index.noun", "a") as file:
        for word in ("automobile", "car"):
            file.write(f"{word} n 1 0 1 0 {len(header):08d}\n")
    return folder


@pytest.fixture
def tiny(tmp_path):
    return write_tiny_wordnet(tmp_path / "share" / "wordnet")


@pytest.fixture
def unread(monkeypatch):
    """Takes every folder for readable that holds WordNet, as reading it in another process takes seconds."""

    def problem(folder):
        found = folder is not None and (folder / "corpora" / "wordnet" / "data.noun").is_file()
        return None if found else "it is not there"

    monkeypatch.setattr(module, "reading_problem", problem)


def sources(monkeypatch, nltk, debian):
    """Replace the two sources by a folder each, or by an error."""
    for name, answer in (("from_nltk", nltk), ("from_debian", debian)):

        def source(work, answer=answer):
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(module, name, source)


def test_nltk_reads_what_is_installed(tiny, tmp_path, monkeypatch, capsys):
    sources(monkeypatch, NotThere("no network"), tiny)
    folder = tmp_path / "my nltk's data; $(x)"

    main([f"--to={folder}"])

    assert reading_problem(folder) is None
    assert f"WordNet from the package wordnet-base is installed: {folder}" in capsys.readouterr().out
    assert os.listdir(folder / "corpora") == ["wordnet"]


def test_what_is_readable_is_left_alone(tiny, tmp_path, unread, monkeypatch, capsys):
    sources(monkeypatch, tiny, NotThere("not asked"))
    main([f"--to={tmp_path}"])
    sources(monkeypatch, AssertionError("asked again"), AssertionError("asked again"))

    main([f"--to={tmp_path}"])

    assert f"already there: {tmp_path}" in capsys.readouterr().out


def test_what_is_damaged_is_not_installed(tiny, tmp_path):
    (tiny / "data.noun").write_text("cut short")
    earlier = tmp_path / "data" / "corpora" / "wordnet" / "data.noun"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("earlier")

    with pytest.raises(NotThere, match="nltk cannot read its files"):
        install(tiny, tmp_path / "data")

    assert earlier.read_text() == "earlier"
    assert os.listdir(earlier.parent.parent) == ["wordnet"]


def test_the_next_source_is_asked_where_one_fails(tiny, tmp_path, unread, monkeypatch):
    (tmp_path / "empty").mkdir()
    sources(monkeypatch, tmp_path / "empty", tiny)

    main([f"--to={tmp_path / 'data'}"])

    assert (tmp_path / "data" / "corpora" / "wordnet" / "index.verb").is_file()


def test_one_line_says_why_no_source_has_it(tmp_path, unread, monkeypatch):
    sources(monkeypatch, NotThere("no network"), NotThere("there is no apt-get on this system"))

    with pytest.raises(UserError) as error:
        main([f"--to={tmp_path}"])

    assert str(error.value) == (
        "WordNet cannot be installed: nltk's server: no network; "
        "the package wordnet-base: there is no apt-get on this system"
    )


def test_a_place_that_cannot_be_written(tiny, tmp_path, unread):
    (tmp_path / "file").write_text("")

    with pytest.raises(UserError, match="cannot write"):
        install(tiny, tmp_path / "file")


def test_the_list_of_lexicographer_files():
    lines = list(lexnames_lines())

    assert [line.split("\t")[0] for line in lines] == [f"{number:02d}" for number in range(45)]
    assert [lines[number] for number in (0, 2, 3, 28, 29, 43, 44)] == [
        "00\tadj.all\t3\n",
        "02\tadv.all\t4\n",
        "03\tnoun.Tops\t1\n",
        "28\tnoun.time\t1\n",
        "29\tverb.body\t2\n",
        "43\tverb.weather\t2\n",
        "44\tadj.ppl\t3\n",
    ]


class TestNltkServer:
    def serve(self, tiny, tmp_path, monkeypatch, extra=()):
        archive = tmp_path / "wordnet.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for path in tiny.iterdir():
                file.write(path, f"wordnet/{path.name}")
            for name in extra:
                file.writestr(name, "unasked")
        content = archive.read_bytes()
        index = tmp_path / "index.xml"
        index.write_text(
            f'<nltk_data><packages><package id="wordnet" name="WordNet" subdir="corpora" unzip="0" '
            f'size="{len(content)}" unzipped_size="{len(content)}" checksum="{hashlib.md5(content).hexdigest()}" '
            f'sha256_checksum="{hashlib.sha256(content).hexdigest()}" url="{archive.as_uri()}"/></packages></nltk_data>'
        )
        monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])  # nltk opens files of no other folder
        monkeypatch.setattr(module, "Downloader", lambda: Downloader(server_index_url=index.as_uri()))

    def test_only_the_files_of_wordnet_are_unpacked(self, tiny, tmp_path, monkeypatch):
        self.serve(tiny, tmp_path, monkeypatch, extra=["wordnet/run.py", "wordnet/../../escaped", "data.noun.bak"])
        work = tmp_path / "work"
        work.mkdir()

        files = from_nltk(work)

        assert sorted(os.listdir(files)) == sorted(os.listdir(tiny))
        assert (files / "data.noun").read_bytes() == (tiny / "data.noun").read_bytes()

    def test_a_server_that_cannot_be_reached(self, tmp_path, monkeypatch):
        missing = (tmp_path / "missing.xml").as_uri()
        monkeypatch.setattr(module, "Downloader", lambda: Downloader(server_index_url=missing))

        with pytest.raises(NotThere):
            from_nltk(tmp_path)


class TestDebianPackage:
    @pytest.fixture
    def programs(self, tiny, tmp_path, monkeypatch):
        """apt-get, which fails until its lists are updated, and dpkg-deb; both note how they were called."""
        folder = tmp_path / "bin"
        folder.mkdir()
        log = tmp_path / "calls"
        scripts = {
            "apt-get": f"""if [ "$1" = update ]; then touch '{tmp_path}/updated'; exit; fi
                if ! [ -e '{tmp_path}/updated' ]; then echo 'E: Unable to locate package' >&2; exit 100; fi
                touch wordnet-base_1%3a3.0-37_all.deb""",
            "dpkg-deb": f"""mkdir -p "$3/usr/share" && cp -r '{tiny}' "$3/usr/share/wordnet\"""",
        }
        for name, body in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\necho \"{name} $1 $2\" >>'{log}'\n{body}\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        monkeypatch.setattr(module, "SYSTEM_FOLDER", tmp_path / "none")
        work = tmp_path / "work"
        work.mkdir()
        return work, log

    def test_it_is_fetched_and_unpacked_after_an_update_of_the_lists(self, programs, tiny):
        work, log = programs

        files = from_debian(work)

        assert (files / "data.noun").read_bytes() == (tiny / "data.noun").read_bytes()
        package = work / "wordnet-base_1%3a3.0-37_all.deb"
        assert log.read_text().splitlines() == [
            "apt-get download wordnet-base",
            "apt-get update ",
            "apt-get download wordnet-base",
            f"dpkg-deb --extract {package}",
        ]

    def test_the_last_line_of_a_program_that_fails_is_the_reason(self, programs, tmp_path):
        (tmp_path / "bin" / "apt-get").write_text("#!/bin/sh\necho 'E: no network' >&2\nexit 100\n")

        with pytest.raises(NotThere, match="apt-get update: E: no network"):
            from_debian(programs[0])

    def test_an_installed_one_is_taken(self, tiny, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "SYSTEM_FOLDER", tiny)

        assert from_debian(tmp_path) == tiny

    def test_other_systems(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "SYSTEM_FOLDER", tmp_path / "none")
        monkeypatch.setenv("PATH", str(tmp_path))

        with pytest.raises(NotThere, match="there is no apt-get on this system"):
            from_debian(tmp_path)
