"""What a run was made from: a fingerprint of each file that decides its results, so that it goes on from the same.

Data files, the files of model folders that are read, and the code of a user's function are hashed; of the model hub,
the commit is noted.
"""

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from common.builtin import FOLDER, PREFIX
from common.training.own_pieces import FUNCTION

Fingerprint = dict[str, str]
"""Name of each file -> its hash; for an id of the hub, its commit."""

# Of a model's folder, as transformers reads it; of any other folder everything but what is hidden or explains.
_OF_MODELS = (".safetensors", ".json", ".txt", ".model", ".jinja")
_EXPLANATIONS = (".md",)
_PIECE = 2**18
_PIECES = 128
"""A file of more than 32 MiB (128 pieces of 256 KiB) is known by its size and as many pieces, evenly spaced: training
changes all of a model's weights, and 100 GB are not to be read at each start."""


def fingerprints(inputs: Mapping[str, str | None]) -> dict[str, Fingerprint]:
    """The fingerprint of each input, by the option that names it; without those that are not there (yet)."""
    found = {option: fingerprint(named) for option, named in inputs.items() if named}
    return {option: files for option, files in found.items() if files}


def fetched_inputs(inputs: Mapping[str, str | None]) -> dict[str, Fingerprint]:
    """The fingerprints of those that come from the hub: after loading there may be more of them."""
    return fingerprints({option: named for option, named in inputs.items() if named and _is_of_hub(named)})


def fingerprint(named: str) -> Fingerprint:
    """The fingerprint of what an option names; empty where there is nothing to hash, which loading it will report.

    Args:
        named: a file, a folder, ``builtin/...``, ``package.module:function`` or an id of the model hub. Of a function
            its module's file is hashed, and nothing that it imports.
    """
    try:
        path = _path(named)
        if path.is_file():
            return {path.name: file_hash(path)}
        if path.is_dir():
            return {str(file.relative_to(path)): file_hash(file) for file in _files(path)}
        return _commit(named) if _is_of_hub(named) else _code(named.split(":")[0])
    except (OSError, ValueError, RuntimeError):  # unreadable, or no name of a file at all
        return {}


def _path(named: str) -> Path:
    return FOLDER / named.removeprefix(PREFIX) if named.startswith(PREFIX) else Path(named).expanduser()


def _is_of_hub(named: str) -> bool:
    try:
        there = _path(named).exists()
    except (OSError, ValueError, RuntimeError):  # no name of a file
        there = False
    is_function = FUNCTION.fullmatch(named) and not named.startswith("evaluate:")
    return not there and not is_function


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content; of a large one, of its size and evenly spaced pieces."""
    size = path.stat().st_size
    if size <= _PIECE * _PIECES:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for number in range(_PIECES):
            file.seek((size - _PIECE) * number // (_PIECES - 1))
            digest.update(file.read(_PIECE))
    return digest.hexdigest()


def changed_inputs(before: Mapping[str, Fingerprint], now: Mapping[str, Fingerprint]) -> list[str]:
    """One phrase for each input that was another one, naming the option and the first file that differs."""
    phrases = []
    for option in sorted(before.keys() & now.keys()):
        one, other = before[option], now[option]
        differing = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
        if differing:
            more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
            phrases.append(f"{option} (its {differing[0]}{more})")
    return phrases


def _files(folder: Path) -> list[Path]:
    if (folder / "config.json").is_file():
        return sorted(file for file in folder.iterdir() if file.suffix in _OF_MODELS and file.is_file())
    files = (file for file in folder.rglob("*") if file.suffix not in _EXPLANATIONS and file.is_file())
    return sorted(file for file in files if not any(p.startswith(".") for p in file.relative_to(folder).parts))


def _code(module: str) -> Fingerprint:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, AttributeError):
        return {}
    origin = Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
    return {} if origin is None else {origin.name: file_hash(origin)}


def _commit(hub_id: str) -> Fingerprint:
    """What the cache of the model hub last knew of a model or data set."""
    found = {}
    for kind in ("model", "dataset"):
        main = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=hub_id, repo_type=kind), "refs", "main")
        if main.is_file():
            found[f"{kind}'s commit"] = main.read_text(encoding="utf-8").strip()
    return found
