"""Libraries that are extras, and the files of the Hugging Face hub that they share."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from embedx.errors import CheckpointError, ConfigError

_TIMEOUT = 10.0
"""Seconds without an answer after which a download is given up."""


def require(library: str, *, extra: str, backbone: str) -> None:
    """Checks that an optional library is there.

    Raises:
        ConfigError: With the command that installs it, if it isn't.
    """
    try:
        importlib.import_module(library)
    except ImportError as error:
        raise ConfigError(f"--backbone {backbone} needs {library}: pip install 'embedx[{extra}]' ({error})") from error


def cached(repository: str, file: str) -> Path | None:
    """A file of a repository, as the cache has it; None if it doesn't."""
    import huggingface_hub

    try:
        path = huggingface_hub.try_to_load_from_cache(repository, file)
    except ValueError:  # no name that a repository can have
        return None
    return Path(path) if isinstance(path, str) else None


def download(repository: str, patterns: Sequence[str], *, advice: str) -> Path:
    """Fetches those files of a repository that match one of the patterns, if there are any.

    Args:
        repository: As `OWNER/NAME`.
        patterns: Of files' names, as in a shell.
        advice: What else can be done, for the message.

    Returns:
        The folder in the cache where they are.

    Raises:
        CheckpointError: If the hub can't be reached, or has no such repository for this user.
    """
    import huggingface_hub

    try:
        # Asked first, as the others take what is in the cache, or try for half a minute, where there is no network.
        huggingface_hub.HfApi().model_info(repository, timeout=_TIMEOUT)
        folder = huggingface_hub.snapshot_download(repository, allow_patterns=list(patterns), etag_timeout=_TIMEOUT)
    except Exception as error:  # which ones depends on the version's HTTP library
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{repository} is not in the Hugging Face cache ({huggingface_hub.constants.HF_HUB_CACHE}) and can't be "
            f"downloaded ({reason}).\n"
            f"Fill the cache where there is a network, by `hf download {repository}`, {advice}"
        ) from error
    return Path(folder)


def digest(files: Iterable[Path]) -> str:
    """Sha256, in hex, of files read one after another.

    Raises:
        CheckpointError: If one can't be read.
    """
    sha256 = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    sha256.update(chunk)
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read ({error.strerror})") from error
    return sha256.hexdigest()
