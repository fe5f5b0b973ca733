"""The libraries that are extras, and the files of the Hugging Face hub that they share."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from embedx.errors import CheckpointError, ConfigError
from embedx.models.weights.find import DOWNLOAD_TIMEOUT


def require(library: str, *, extra: str, backbone: str) -> None:
    """Checks that an optional library can be imported.

    Raises:
        ConfigError: If it can't; the message has the command that installs it.
    """
    try:
        importlib.import_module(library)
    except ImportError as error:
        raise ConfigError(f"--backbone {backbone} needs {library}: pip install 'embedx[{extra}]' ({error})") from error


def cached(repository: str, file: str) -> Path | None:
    """Returns the path in the cache of a repository's file; None if it is not in the cache."""
    import huggingface_hub

    try:
        path = huggingface_hub.try_to_load_from_cache(repository, file)
    except ValueError:  # no repository can have this name
        return None
    return Path(path) if isinstance(path, str) else None


def download(repository: str, patterns: Sequence[str], *, advice: str) -> Path:
    """Fetches the files of a repository OWNER/NAME that match one of the patterns, and returns their folder.

    Raises:
        CheckpointError: If the hub can't be reached, or has no such repository for this user; `advice` ends its text.
    """
    import huggingface_hub

    try:
        # Asked first: without a network, snapshot_download would take the cache's files, or try for half a minute.
        huggingface_hub.HfApi().model_info(repository, timeout=DOWNLOAD_TIMEOUT)
        folder = huggingface_hub.snapshot_download(
            repository, allow_patterns=list(patterns), etag_timeout=DOWNLOAD_TIMEOUT
        )
    except Exception as error:  # its class depends on the version's HTTP library
        reason = str(error).partition("\n")[0] or type(error).__name__
        cache = huggingface_hub.constants.HF_HUB_CACHE
        raise CheckpointError(
            [
                f"{repository} is not in the Hugging Face cache ({cache}) and can't be downloaded ({reason}).",
                f"Fill the cache where there is a network, by `hf download {repository}`, {advice}",
            ]
        ) from error
    return Path(folder)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences the progress bars and reports of transformers."""
    from transformers.utils import logging

    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()
