# SPDX-License-Identifier: Apache-2.0
"""Models on a hub, by huggingface_hub: fetched into its cache, or published in one commit.

huggingface_hub's own mixin for models is not inherited: it would rewrite `config.json`, write a card of its own beside
every saved model, read a pickle where there are no safetensors, and change a class by what is installed. The arguments
here have its names.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from scrd_fast import __version__
from scrd_fast.errors import MissingExtraError, ScrdFastError, UnavailableError

__all__ = ["FILES", "fetch", "library", "located", "no_bars_in_files", "upload"]

FILES = ("config.json", "model.safetensors", "calibration.json", "README.md")  # all that is fetched or published
_REPO_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)


def located(
    name_or_folder: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """A model's folder here: the one that is named, or, for a text "user/model" that is no path here, of the hub.

    Raises `ScrdFastError` for the revision of a local folder, and what `fetch` raises.

    >>> located("."), located(Path("user/model"))
    (PosixPath('.'), PosixPath('user/model'))
    """
    folder = Path(name_or_folder)
    if isinstance(name_or_folder, str) and _REPO_ID.fullmatch(name_or_folder) and not folder.exists():
        if folder.parent.is_dir():  # a slip, and whoever has that name on a hub is not to answer it
            raise ScrdFastError(f"{name_or_folder}: no such folder, though {folder.parent} is one")
        return fetch(
            name_or_folder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    if revision is not None:
        raise ScrdFastError(f"revision: {name_or_folder} names a folder here, which has none, got {revision!r}")
    return folder


def fetch(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder in huggingface_hub's cache with those of `FILES` that the model has; nothing else is fetched.

    `revision` is a branch, tag or commit, `token` the hub's (None: that of `hf auth login` or HF_TOKEN).
    With `local_files_only`, or where the hub cannot be reached, the cache alone serves. Raises `ScrdFastError` for a
    repository, revision or weights that are not there or are damaged, `UnavailableError` where the hub cannot be
    reached, `MissingExtraError` without huggingface_hub.
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise ScrdFastError(f"{repo_id}: no model of a hub; expected user/model")
    hub = library()
    try:
        folder = Path(
            hub.snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=list(FILES),
                library_name="scrd_fast",
                library_version=__version__,
            )
        )
    except Exception as error:
        raise _explained(error, repo_id, revision, "fetched") from None
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).is_file():
            raise ScrdFastError(f"{repo_id}: no {file} at {_endpoint()}; other formats are not read")
    _require_whole(folder / "model.safetensors", repo_id)
    return folder


def _require_whole(weights: Path, repo_id: str) -> None:
    """The cache names a large file by its SHA-256 at the hub, where links to files work; the library checks sizes."""
    from huggingface_hub.utils.sha import sha_fileobj

    file = weights.resolve()
    if re.fullmatch("[0-9a-f]{64}", file.name):
        with file.open("rb") as content:
            digest = sha_fileobj(content).hex()
        if digest != file.name:
            raise ScrdFastError(f"{repo_id}: {weights.name} is damaged, it is not what the hub has; remove {file}")


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool,
    token: str | bool | None,
    branch: str | None,
    commit_message: str,
) -> str:
    """Bring the files of `folder` to the hub in one commit, and return its URL.

    The repository and the branch are made where there are none; a repository that is there stays as public as it is.
    Those of `FILES` that `folder` lacks are removed there: they would be another model's.
    Raises `ScrdFastError` and `UnavailableError` as `fetch` does.
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise ScrdFastError(f"{repo_id}: no name for a model on a hub; expected user/model")
    hub = library()
    try:
        api = hub.HfApi(token=token, library_name="scrd_fast", library_version=__version__)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=branch,
            commit_message=commit_message,
            delete_patterns=list(FILES),
        )
    except Exception as error:
        raise _explained(error, repo_id, branch, "published") from None
    return str(commit.commit_url)


def no_bars_in_files() -> None:
    """huggingface_hub draws its progress bars wherever stderr leads; a command's go to terminals only."""
    if not sys.stderr.isatty():
        library().utils.disable_progress_bars()


def library() -> Any:
    """huggingface_hub, which is no part of the core. Raises `MissingExtraError`."""
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtraError("huggingface_hub", "export") from None
    return huggingface_hub


def _endpoint() -> str:
    return str(library().constants.ENDPOINT)


def _explained(error: Exception, repo_id: str, revision: str | None, aim: str) -> ScrdFastError:
    """In one line: the library's own texts have several, with advice of its own."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return ScrdFastError(f"{repo_id}: access is restricted; ask for it at {_endpoint()}/{repo_id}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ScrdFastError(
            f"{repo_id}: no folder here and no model at {_endpoint()}, or a private one that the token does not open"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ScrdFastError(f"{repo_id}: no revision {revision} at {_endpoint()}")
    response = getattr(error, "response", None)
    if response is not None and response.status_code in (401, 403):
        return ScrdFastError(f"{repo_id}: {_endpoint()} refuses the token, or there is none; `hf auth login` sets one")
    if isinstance(error, errors.LocalEntryNotFoundError):
        return UnavailableError(f"{repo_id}: not in the cache, and {_endpoint()} was not to be asked or did not answer")
    text = " ".join(str(error).split())[:200]
    return UnavailableError(f"{repo_id}: could not be {aim}, {_endpoint()}: {type(error).__name__}: {text}")
