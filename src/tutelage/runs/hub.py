"""Publishing a student on the Hugging Face hub."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.config import Config, read_config
from tutelage.errors import TutelageError, one_line
from tutelage.files import as_path, atomic_write
from tutelage.models.weights import encode_weights, read_state
from tutelage.runs.folder import CONFIG, LOAD, RESULT, WEIGHTS, RunFolder
from tutelage.runs.header import read_header
from tutelage.runs.loading_script import loading_script
from tutelage.runs.model_card import WEIGHTS_NAME, model_card, without_folders

FOLDER = "hub"
"""The folder in a run's folder into which a dry run writes."""

_REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_PRIVATE = ("command", "student_sha256", "samples_sha256", "calibrated_sha256")  # paths, and digests of other files


@dataclass(frozen=True)
class Pushed:
    """What was published, or written by a dry run.

    Attributes:
        address: of the repository, or the folder of a dry run.
        files: the names of the files with their sizes in bytes.
    """

    address: str
    files: dict[str, int]


def push(
    run: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    api: Any = None,
) -> Pushed:
    """Upload a finished run's student to the Hugging Face hub, with a model card.

    The repository gets ``model.safetensors``, ``README.md``, ``config.json`` (network, classes, input shape,
    normalisation, calibration), ``result.json`` and ``load.py``; no checkpoint, no data, no cached teacher outputs, no
    results for single samples. Absolute paths are shortened to their last part.

    Args:
        run: the folder of a finished run.
        repo: ``USER/REPO``; it is made if it does not exist.
        private: whether a new repository is private.
        dry_run: write the files into the folder ``hub`` of the run instead; needs no network and no extra.
        api: a ``huggingface_hub.HfApi``; by default one with the token of ``hf auth login`` or ``HF_TOKEN``.

    Raises:
        TutelageError: there is no such run, the name of the repository is invalid, the extra ``hf`` is missing, or the
            hub refuses the token or the files.
    """
    if not _REPO.fullmatch(repo):
        raise TutelageError(f"{repo!r} is no repository of the hub; write USER/REPO, with letters, digits, - _ and .")
    files = hub_files(as_path(run), repo)
    sizes = {name: len(content) for name, content in files.items()}
    if dry_run:
        target = as_path(run) / FOLDER
        _write(target, files)
        return Pushed(str(target), sizes)
    api = _api() if api is None else api
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), files)
        try:
            address = api.create_repo(repo_id=repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload the student of a tutelage run")
        except Exception as error:  # errors of the library, the network and the hub have no common class
            raise TutelageError(
                f"the hub did not take {repo}: {one_line(error)}; check the name, the connection and the token: "
                "hf auth login, or HF_TOKEN with write access"
            ) from error
    return Pushed(str(address), sizes)


def hub_files(folder: Path, repo: str) -> dict[str, bytes]:
    """The files of the repository by name.

    Raises:
        TutelageError: the folder is not that of a finished run.
    """
    if not (folder / CONFIG).is_file() or not (folder / RESULT).is_file():
        raise TutelageError(f"{folder} is not the folder of a finished run; name one")
    result = RunFolder(folder).result() or {}
    file = folder / WEIGHTS
    read_header(file)  # checks the file
    state, metadata = read_state(file)
    metadata = without_folders(metadata)
    fields = {key: value for key, value in read_config(folder / CONFIG).items() if key in Config.model_fields}
    config = Config(**without_folders(fields | {"teacher_cache": None}))
    public = without_folders({key: value for key, value in result.items() if key not in _PRIVATE})
    script = loading_script(metadata, f'Path(__file__).with_name("{WEIGHTS_NAME}")')
    return {
        WEIGHTS_NAME: encode_weights(state, metadata, str(file)),
        "README.md": model_card(repo, public, config, metadata, script).encode(),
        "config.json": _json(metadata),
        RESULT: _json(public),
        LOAD: script.encode(),
    }


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        atomic_write(folder / name, content, follow=False)


def _api() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise TutelageError("push needs the extra: pip install 'tutelage[hf]'; --dry-run needs none") from error
    return huggingface_hub.HfApi()
