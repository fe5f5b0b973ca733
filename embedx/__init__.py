"""embedx: image embeddings, every row tied to its input.

The public names are imported when first used, so that `import embedx` is quick and imports no torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedx.api.embedding import Embedder as Embedder
    from embedx.api.embedding import embed as embed
    from embedx.api.extraction import extract as extract
    from embedx.api.searching import search as search
    from embedx.api.store_verbs import build_index as build_index
    from embedx.api.store_verbs import duplicates as duplicates
    from embedx.api.store_verbs import export as export
    from embedx.api.store_verbs import report as report
    from embedx.api.text_queries import embed_texts as embed_texts
    from embedx.callbacks.checkpoint import Checkpoint as Checkpoint
    from embedx.callbacks.early_stopping import EarlyStopping as EarlyStopping
    from embedx.callbacks.evaluator import Evaluator as Evaluator
    from embedx.callbacks.metrics_log import MetricsLog as MetricsLog
    from embedx.callbacks.weight_average import WeightAverage as WeightAverage
    from embedx.callbacks.writer import EmbeddingsWriter as EmbeddingsWriter
    from embedx.config import ExtractConfig as ExtractConfig
    from embedx.engine.callback import Callback as Callback
    from embedx.engine.connectors import CallbackConnector as CallbackConnector
    from embedx.engine.connectors import DataConnector as DataConnector
    from embedx.engine.connectors import LossConnector as LossConnector
    from embedx.engine.connectors import data_key as data_key
    from embedx.engine.connectors import pred_key as pred_key
    from embedx.engine.connectors import remap_pred_keys as remap_pred_keys
    from embedx.engine.fit import Schedule as Schedule
    from embedx.engine.fit import run_fit as run_fit
    from embedx.engine.loop import run_test as run_test
    from embedx.engine.state import TrainerState as TrainerState
    from embedx.errors import CheckpointError as CheckpointError
    from embedx.errors import ConfigError as ConfigError
    from embedx.errors import DeviceMemoryError as DeviceMemoryError
    from embedx.errors import EmbedxError as EmbedxError
    from embedx.errors import InputError as InputError
    from embedx.errors import LeakError as LeakError
    from embedx.errors import LoaderError as LoaderError
    from embedx.errors import NotAStoreError as NotAStoreError
    from embedx.errors import StoreError as StoreError
    from embedx.errors import StoreLockedError as StoreLockedError
    from embedx.errors import StoreMismatchError as StoreMismatchError
    from embedx.errors import StoreReplacedError as StoreReplacedError
    from embedx.errors import TooManyRejectedError as TooManyRejectedError
    from embedx.errors import TooManyUnavailableError as TooManyUnavailableError
    from embedx.errors import WriterError as WriterError
    from embedx.store.reading.compare import Comparison as Comparison
    from embedx.store.reading.compare import compare as compare
    from embedx.store.reading.embeddings import Embeddings as Embeddings
    from embedx.store.reading.groups import NO_GROUP as NO_GROUP
    from embedx.store.reading.reader import Store as Store
    from embedx.store.reading.verify import verify as verify
    from embedx.vectors.exporting.export import ExportResult as ExportResult
    from embedx.vectors.indexing.ann_build import IndexResult as IndexResult
    from embedx.vectors.pairs.duplicates_result import DuplicatesResult as DuplicatesResult
    from embedx.vectors.probing.probe import probe as probe
    from embedx.vectors.probing.probe_config import ProbeConfig as ProbeConfig
    from embedx.vectors.probing.probe_result import ProbeResult as ProbeResult
    from embedx.vectors.reporting.report import ReportResult as ReportResult
    from embedx.vectors.searching.search_result import SearchResult as SearchResult

    open = Store.open
    __version__: str

_NAMES = {
    "api.embedding": "Embedder embed",
    "api.extraction": "extract",
    "api.searching": "search",
    "api.store_verbs": "build_index duplicates export report",
    "api.text_queries": "embed_texts",
    "callbacks.checkpoint": "Checkpoint",
    "callbacks.early_stopping": "EarlyStopping",
    "callbacks.evaluator": "Evaluator",
    "callbacks.metrics_log": "MetricsLog",
    "callbacks.weight_average": "WeightAverage",
    "callbacks.writer": "EmbeddingsWriter",
    "config": "ExtractConfig",
    "engine.callback": "Callback",
    "engine.connectors": "CallbackConnector DataConnector LossConnector data_key pred_key remap_pred_keys",
    "engine.fit": "Schedule run_fit",
    "engine.loop": "run_test",
    "engine.state": "TrainerState",
    "errors": "CheckpointError ConfigError DeviceMemoryError EmbedxError InputError LeakError LoaderError "
    "NotAStoreError StoreError StoreLockedError StoreMismatchError StoreReplacedError TooManyRejectedError "
    "TooManyUnavailableError WriterError",
    "store.reading.compare": "Comparison compare",
    "store.reading.embeddings": "Embeddings",
    "store.reading.groups": "NO_GROUP",
    "store.reading.reader": "Store",
    "store.reading.verify": "verify",
    "vectors.exporting.export": "ExportResult",
    "vectors.indexing.ann_build": "IndexResult",
    "vectors.pairs.duplicates_result": "DuplicatesResult",
    "vectors.probing.probe": "probe",
    "vectors.probing.probe_config": "ProbeConfig",
    "vectors.probing.probe_result": "ProbeResult",
    "vectors.reporting.report": "ReportResult",
    "vectors.searching.search_result": "SearchResult",
}
"""The public names of each module."""
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [*_HOMES, "open"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("embedx")
    if name in __all__ and sys.platform == "win32":
        raise ImportError(import_module("embedx.errors").WINDOWS)
    if name == "open":
        return import_module("embedx.store.reading.reader").Store.open
    if name in _HOMES:
        with import_module("embedx.system.signals").interrupts_deferred():
            value = getattr(import_module(f"embedx.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'embedx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
