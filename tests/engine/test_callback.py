"""The base of all callbacks: the hooks, exactly as the contract has them."""

import inspect
from typing import Any

import pytest
from torch import nn

import embedx
from embedx.engine.callback import HOOKS, Callback
from embedx.engine.connectors import CallbackConnector, data_key, pred_key
from embedx.engine.state import new_state
from embedx.errors import ConnectorError

CONTRACT = {
    "setup": "",
    "on_train_epoch_start": "trainer_state, model, loss_module",
    "on_train_batch_start": "trainer_state, model, loss_module, batch, batch_idx",
    "on_train_batch_end": "trainer_state, model, loss_module, outputs, batch, batch_idx",
    "on_train_epoch_end": "trainer_state, model, loss_module",
    "on_test_epoch_start": "trainer_state, model",
    "on_test_batch_end": "trainer_state, model, outputs, batch, batch_idx, dataloader_idx=0",
    "on_test_epoch_end": "trainer_state, model",
    "on_exception": "trainer_state, error",
    "teardown": "",
}
INPUTS = ("get_train_callback_inputs", "get_test_callback_inputs")


def parameters(function: Any) -> str:
    """Names and defaults, without annotations and `self`."""
    return ", ".join(
        name if parameter.default is parameter.empty else f"{name}={parameter.default!r}"
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self"
    )


def test_the_hooks_are_those_of_the_contract() -> None:
    assert tuple(CONTRACT) == HOOKS
    assert embedx.Callback is Callback


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_the_contracts_signature(hook: str) -> None:
    assert parameters(getattr(Callback, hook)) == CONTRACT[hook]
    kinds = {parameter.kind for parameter in inspect.signature(getattr(Callback, hook)).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_does_nothing_and_is_documented(hook: str) -> None:
    method = getattr(Callback(), hook)
    assert method(*(None for name in inspect.signature(method).parameters)) is None
    assert (inspect.getdoc(method) or "").startswith("Hook to run ")


def test_the_constructor_has_the_contracts_signature() -> None:
    assert parameters(Callback.__init__) == "epoch_based=True, train_connector=None, test_connector=None"
    assert [parameters(getattr(Callback, name)) for name in INPUTS] == ["outputs, batch"] * 2


def test_a_callback_keeps_what_it_is_given() -> None:
    connector = CallbackConnector({})
    callback = Callback(epoch_based=False, test_connector=connector)
    assert (callback.epoch_based, callback.train_connector, callback.test_connector) == (False, None, connector)
    assert Callback().epoch_based is True


@pytest.mark.parametrize("stage", ["train", "test"])
def test_the_stages_connector_makes_the_inputs(stage: str) -> None:
    connector = CallbackConnector({"features": pred_key("heads.cls"), "names": data_key("keys")})
    given: dict[str, Any] = {f"{stage}_connector": connector}
    callback = Callback(**given)
    inputs = getattr(callback, f"get_{stage}_callback_inputs")
    assert inputs({"heads": {"cls": 1}}, {"keys": ["a"]}) == {"features": 1, "names": ["a"]}


@pytest.mark.parametrize("stage", ["train", "test"])
def test_without_that_stages_connector_the_error_names_the_callback(stage: str) -> None:
    class LogitsWriter(Callback):
        pass

    other = {"train": "test", "test": "train"}[stage]
    given: dict[str, Any] = {f"{other}_connector": CallbackConnector({})}
    callback = LogitsWriter(**given)
    with pytest.raises(ConnectorError, match=rf"LogitsWriter has no {stage}_connector; give it one, such as"):
        getattr(callback, f"get_{stage}_callback_inputs")({}, {})


def test_a_missing_key_is_the_connectors_error() -> None:
    callback = Callback(test_connector=CallbackConnector({"x": pred_key("logits")}))
    with pytest.raises(ConnectorError, match="the prediction has no key 'logits'; it has embeddings"):
        callback.get_test_callback_inputs({"embeddings": 1}, {})


def test_a_subclass_can_be_called_by_the_contracts_keywords() -> None:
    Callback().on_test_batch_end(
        trainer_state=new_state(), model=nn.Identity(), outputs={}, batch={}, batch_idx=0, dataloader_idx=1
    )
