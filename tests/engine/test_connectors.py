"""Connectors: which value goes where, and what they say when it is not there."""

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedx.engine.connectors import (
    CallbackConnector,
    DataConnector,
    LossConnector,
    data_key,
    get_field,
    pred_key,
    remap_pred_keys,
)
from embedx.errors import ConnectorError


class Head(NamedTuple):
    """What a classification head returns."""

    logits: Any
    loss: Any = None


BATCH = {"images": "I", "keys": ["a"], "metadata": {"slide": "s1", "scan.date": "today"}}
PREDICTION = {"embeddings": "E", "heads": {"cls": Head("L")}, "layer4.1.conv2": "C"}
BOTH = (CallbackConnector, LossConnector)


def test_keys_say_where_a_value_stands() -> None:
    assert data_key("keys") == {"key": "keys", "source": "data"}
    assert pred_key("embeddings") == {"key": "embeddings", "source": "prediction"}


def test_remapping_nests_predictions_and_leaves_data_alone() -> None:
    mapping = {"embeddings": pred_key("embeddings"), "logits": pred_key("heads.cls"), "keys": data_key("keys")}
    remapped = remap_pred_keys(mapping, "teacher")
    assert remapped == {
        "embeddings": pred_key("teacher.embeddings"),
        "logits": pred_key("teacher.heads.cls"),
        "keys": data_key("keys"),
    }
    assert mapping["embeddings"] == pred_key("embeddings")
    assert CallbackConnector(remapped)({"teacher": {**PREDICTION, "heads": {"cls": "L"}}}, BATCH) == {
        "embeddings": "E",
        "logits": "L",
        "keys": ["a"],
    }


def test_remapping_twice_nests_twice() -> None:
    mapping = remap_pred_keys(remap_pred_keys({"x": pred_key("x")}, "inner"), "outer")
    assert CallbackConnector(mapping)({"outer": {"inner": {"x": 1}}}, {}) == {"x": 1}


def test_data_connector_renames_and_leaves_out() -> None:
    assert DataConnector({"pixel_values": "images", "slide": "metadata.slide"})(BATCH) == {
        "pixel_values": "I",
        "slide": "s1",
    }
    assert DataConnector({})(BATCH) == {}


@pytest.mark.parametrize("connector", BOTH)
def test_predictions_and_data_go_by_their_names(connector: type) -> None:
    connect = connector(
        {"prediction": pred_key("heads.cls.logits"), "same": data_key("images"), "slide": data_key("metadata.slide")}
    )
    assert connect(PREDICTION, BATCH) == {"prediction": "L", "same": "I", "slide": "s1"}


def test_a_prediction_may_be_a_named_tuple() -> None:
    assert CallbackConnector({"logits": pred_key("logits")})(Head("L"), BATCH) == {"logits": "L"}


def test_keys_that_contain_dots_are_found() -> None:
    connect = CallbackConnector({"conv": pred_key("layer4.1.conv2"), "date": data_key("metadata.scan.date")})
    assert connect(PREDICTION, BATCH) == {"conv": "C", "date": "today"}


def test_the_longest_beginning_that_is_a_key_wins() -> None:
    assert get_field({"a.b": 1, "a": {"b": 2}}, "a.b", "it") == 1


@given(st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=4))
def test_any_path_of_keys_is_found_dots_or_not(path: list[str]) -> None:
    nested: Any = "value"
    for key in reversed(path):
        nested = {key: nested}
    assert get_field(nested, ".".join(path), "it") == "value"


@pytest.mark.parametrize("value", [None, 0, False, ""])
def test_a_value_that_is_false_is_still_there(value: object) -> None:
    assert DataConnector({"x": "x"})({"x": value}) == {"x": value}


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (data_key("image"), "the batch has no key 'image'; it has images, keys, metadata"),
        (data_key("metadata.patient"), "the batch.metadata has no key 'patient'; it has slide, scan.date"),
        (pred_key("logits"), "the prediction has no key 'logits'; it has embeddings, heads, layer4.1.conv2"),
        (pred_key("heads.cls.probs"), "the prediction.heads.cls has no key 'probs'; it has logits, loss"),
        (pred_key("embeddings.x"), "the prediction.embeddings is a str and has no keys; looked for 'x'"),
    ],
)
@pytest.mark.parametrize("connector", BOTH)
def test_a_missing_key_lists_the_keys_there_are(connector: type, key: Any, said: str) -> None:
    with pytest.raises(ConnectorError) as caught:
        connector({"x": key})(PREDICTION, BATCH)
    assert str(caught.value) == said
    assert caught.value.exit_code == 2


def test_a_key_missing_in_an_empty_batch_says_there_are_none() -> None:
    with pytest.raises(ConnectorError, match="the batch has no key 'images'; it has none"):
        DataConnector({"images": "images"})({})


def test_what_has_no_keys_is_named_by_its_type() -> None:
    with pytest.raises(ConnectorError, match="the batch is a list and has no keys; looked for 'images'"):
        DataConnector({"images": "images"})([1, 2])


@pytest.mark.parametrize("connector", BOTH)
def test_a_wrong_source_is_refused_at_once(connector: type) -> None:
    with pytest.raises(ConnectorError, match=r"'x' has the source 'model'; use data_key\(...\) or pred_key\(...\)"):
        connector({"x": {"key": "x", "source": "model"}})


def test_a_connector_keeps_its_own_copy_of_the_mapping() -> None:
    mapping = {"x": "images"}
    connect = DataConnector(mapping)
    mapping["y"] = "nothing"
    assert connect(BATCH) == {"x": "I"}
