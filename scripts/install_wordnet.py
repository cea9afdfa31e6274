"""Install WordNet, which METEOR takes its synonyms from, where nltk finds it.

    python scripts/install_wordnet.py
    python scripts/install_wordnet.py --to ~/nltk_data

Does nothing where nltk can already read it. Otherwise it is taken from nltk's own server or, where that cannot be
reached, from Debian's and Ubuntu's package `wordnet-base`: the installed one, or one fetched and unpacked without being
installed, which needs no administrator if the package lists are there. Both hold WordNet 3.0.
"""

from common.training.program import run_command

import io
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import nltk.data
from nltk.downloader import Downloader

from common.errors import UserError
from common.training.console import Parser
from common.training.files import write_folder_atomic

PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
REQUIRED = (
    *(f"{kind}.{part}" for kind in ("data", "index") for part in PARTS_OF_SPEECH),
    *(f"{part}.exc" for part in PARTS_OF_SPEECH),
)
OPTIONAL = ("cntlist.rev", "lexnames", "index.sense", "LICENSE", "README")

READ_SYNONYMS = """
import sys
import nltk.data
from nltk.corpus import wordnet
nltk.data.path[:] = sys.argv[1:] or nltk.data.path
print(*{lemma.name() for meaning in wordnet.synsets("cars") for lemma in meaning.lemmas()})
"""

DEBIAN_PACKAGE = "wordnet-base"
PACKAGE_FOLDER = Path("usr/share/wordnet")
SYSTEM_FOLDER = Path("/") / PACKAGE_FOLDER
TIMEOUT_SECONDS = 300
SILENCE_SECONDS = 30


# WordNet's lexicographer files, see lexnames(5WN): part of speech, number of the first, names. Debian leaves the list
# out, and nltk needs it.
LEXICOGRAPHER_FILES = (
    ("adj", 0, "all pert"),
    ("adv", 2, "all"),
    (
        "noun",
        3,
        "Tops act animal artifact attribute body cognition communication event feeling food group location motive "
        "object person phenomenon plant possession process quantity relation shape state substance time",
    ),
    (
        "verb",
        29,
        "body change cognition communication competition consumption contact creation emotion motion perception "
        "possession social stative weather",
    ),
    ("adj", 44, "ppl"),
)


class NotThere(Exception):
    """WordNet cannot be had from this place; the message says why."""


def main(words: Sequence[str] | None = None) -> None:
    """Install WordNet unless nltk can already read it."""
    folder = read_options(words)
    if reading_problem(folder) is None:
        print(f"WordNet is already there{'' if folder is None else f': {folder}'}")
        return
    folder = folder or default_folder()
    refusals = []
    for name, source in (("nltk's server", from_nltk), (f"the package {DEBIAN_PACKAGE}", from_debian)):
        try:
            with tempfile.TemporaryDirectory(prefix="wordnet-") as work:
                install(source(Path(work)), folder)
        except NotThere as error:
            refusals.append(f"{name}: {error}")
            continue
        print(f"WordNet from {name} is installed: {folder}")
        if str(folder) not in nltk.data.path:
            print(f"nltk looks there where the environment says NLTK_DATA={folder}")
        return
    raise UserError(f"WordNet cannot be installed: {'; '.join(refusals)}")


def read_options(words: Sequence[str] | None) -> Path | None:
    """The folder that the command line names, if it does."""
    parser = Parser("scripts/install_wordnet.py", __doc__)
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER", help="an nltk_data folder (default: that of this Python environment)"
    )
    folder: Path | None = parser.parse_args(words).to
    return folder.expanduser().absolute() if folder is not None else None


def default_folder() -> Path:
    """An nltk_data folder that nltk looks into by itself: the virtual environment's, else the one it would choose."""
    if sys.prefix != sys.base_prefix:
        return Path(sys.prefix, "nltk_data")
    return Path(Downloader().default_download_dir())


def reading_problem(folder: Path | None) -> str | None:
    """Why nltk cannot read WordNet below an nltk_data folder, or, for None, wherever it looks; None if it can.

    Another process tries, as nltk keeps what it has read and where it looked.
    """
    folders = [] if folder is None else [str(folder)]
    done = subprocess.run([sys.executable, "-c", READ_SYNONYMS, *folders], capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip(" *")]
        return lines[-1] if lines else f"exit code {done.returncode}"
    synonyms = set(done.stdout.split())
    return None if {"car", "automobile"} <= synonyms else f"it finds no synonyms of 'cars' but {sorted(synonyms)}"


def install(files: Path, folder: Path) -> None:
    """Put WordNet's files, completed, into an nltk_data folder: all of them or none.

    Raises:
        NotThere: they are not a WordNet that nltk can read.
        UserError: the folder cannot be written.
    """
    missing = [name for name in REQUIRED if not (files / name).is_file()]
    if missing:
        raise NotThere(f"the file {missing[0]} is missing")
    with tempfile.TemporaryDirectory(prefix="wordnet-") as trial:
        whole = Path(trial, "corpora", "wordnet")
        whole.mkdir(parents=True)
        for name in (*REQUIRED, *OPTIONAL):
            if (files / name).is_file():
                shutil.copyfile(files / name, whole / name)
        if not (whole / "lexnames").exists():
            (whole / "lexnames").write_text("".join(lexnames_lines()), encoding="ascii")
        # nltk opens the index of sense keys, which Debian leaves out; METEOR asks for no sense by its key.
        (whole / "index.sense").touch()
        problem = reading_problem(Path(trial))
        if problem is not None:
            raise NotThere(f"nltk cannot read its files: {problem}")
        target = folder / "corpora" / "wordnet"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {target.parent}: {error.strerror}") from error
        with write_folder_atomic(target) as place:
            shutil.copytree(whole, place, dirs_exist_ok=True)


def lexnames_lines() -> Iterator[str]:
    """The lines of the file `lexnames`: number, name and part of speech of each lexicographer file."""
    for part, first, names in LEXICOGRAPHER_FILES:
        for number, name in enumerate(names.split(), start=first):
            yield f"{number:02d}\t{part}.{name}\t{PARTS_OF_SPEECH.index(part) + 1}\n"


def from_nltk(work: Path) -> Path:
    """Fetch WordNet from nltk's server.

    Raises:
        NotThere: it cannot be reached, or what it sends is damaged.
    """
    messages = io.StringIO()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)  # a network that swallows packets would be waited for without end
    try:
        Downloader().download("wordnet", download_dir=str(work), quiet=True, print_error_to=messages)
    except (OSError, ValueError) as error:
        raise NotThere(str(error)) from error
    finally:
        socket.setdefaulttimeout(before)
    archive = work / "corpora" / "wordnet.zip"
    if not archive.is_file():
        reason = " ".join(messages.getvalue().replace("[nltk_data]", " ").split())
        raise NotThere(reason or "it sends nothing")
    files = work / "files"
    files.mkdir()
    try:
        with zipfile.ZipFile(archive) as content:
            for name in content.namelist():
                short = name.removeprefix("wordnet/")
                if short in REQUIRED or short in OPTIONAL:
                    (files / short).write_bytes(content.read(name))
    except zipfile.BadZipFile as error:
        raise NotThere(str(error)) from error
    return files


def from_debian(work: Path) -> Path:
    """WordNet of the system, or of the system's package, which is unpacked into `work`.

    Raises:
        NotThere: no such package manager, or it cannot fetch the package.
    """
    if (SYSTEM_FOLDER / REQUIRED[0]).is_file():
        return SYSTEM_FOLDER
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise NotThere(f"there is no {program} on this system")
    try:
        call(["apt-get", "download", DEBIAN_PACKAGE], work)
    except NotThere:
        call(["apt-get", "update"], work)  # the package lists may be missing or old
        call(["apt-get", "download", DEBIAN_PACKAGE], work)
    packages = sorted(work.glob(f"{DEBIAN_PACKAGE}_*.deb"))
    if not packages:
        raise NotThere("apt-get downloaded nothing")
    call(["dpkg-deb", "--extract", str(packages[0]), str(work / "unpacked")], work)
    return work / "unpacked" / PACKAGE_FOLDER


def call(command: Sequence[str], folder: Path) -> None:
    """Run a program in a folder.

    Raises:
        NotThere: it fails or takes too long; the message holds the last line that it wrote.
    """
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotThere(str(error)) from error
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise NotThere(f"{' '.join(command[:2])}: {lines[-1]}")


if __name__ == "__main__":
    run_command(main)
