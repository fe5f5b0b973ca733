"""The test loop: order, padding, modes and the state it keeps."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import embedx
from embedx.engine import loop
from embedx.engine.callback import Callback
from embedx.engine.connectors import DataConnector
from embedx.engine.state import Batch, Outputs, TrainerState, new_state
from embedx.errors import ConnectorError


class Doubler(nn.Module):
    """Doubles, and notes in which mode it did."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append((self.training, torch.is_inference_mode_enabled()))
        return images * self.scale


class Keeper(Callback):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Any] = []
        self.places: list[tuple[int, int, int]] = []
        self.inference: list[bool] = []

    def on_test_batch_end(
        self,
        trainer_state: TrainerState,
        model: nn.Module,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.outputs.append(outputs)
        self.places.append((dataloader_idx, batch_idx, trainer_state["global_step"]))
        self.inference.append(torch.is_inference_mode_enabled())


def batches(*numbers: float) -> list[Batch]:
    return [{"images": torch.full((4, 3), number)} for number in numbers]


def test_batches_come_in_order_dataloader_by_dataloader() -> None:
    keeper = Keeper()
    state = loop.run_test(Doubler(), {"b": batches(1, 2), "a": batches(3)}, [keeper])
    assert keeper.places == [(0, 0, 1), (0, 1, 2), (1, 0, 3)]
    assert [outputs[0, 0].item() for outputs in keeper.outputs] == [2.0, 4.0, 6.0]
    assert list(state["test_dataloader"] or ()) == ["b", "a"]


def test_the_state_counts_batches() -> None:
    def endless() -> Iterator[Batch]:
        yield from batches(1, 2, 3)

    seen: list[tuple[Any, ...]] = []

    class Looker(Callback):
        def on_test_epoch_start(self, trainer_state: TrainerState, model: nn.Module) -> None:
            seen.append(tuple(trainer_state[name] for name in ("num_test_batches", "num_steps", "global_step")))

    state = loop.run_test(Doubler(), {"a": batches(1, 2), "b": endless(), "c": []}, [Looker()])
    assert seen == [([2, None, 0], 2, 0)]
    assert state["global_step"] == 5
    assert (state["current_epoch"], state["num_epochs"]) == (0, 1)
    assert state["metrics"] == {}


def test_no_dataloaders_is_an_empty_run() -> None:
    state = loop.run_test(Doubler(), {}, [])
    assert (state["num_test_batches"], state["num_steps"], state["global_step"]) == ([], 0, 0)


def test_two_states_share_nothing() -> None:
    new_state()["metrics"]["x"] = 1.0
    assert new_state()["metrics"] == {}


def test_the_public_name_is_this_loop() -> None:
    assert embedx.run_test is loop.run_test


@pytest.mark.parametrize("as_dict", [False, True])
def test_padding_is_dropped(as_dict: bool) -> None:
    class Model(nn.Module):
        def forward(self, images: Tensor) -> Any:
            return {"embeddings": images, "tokens": images.reshape(4, 1, 3)} if as_dict else images

    keeper = Keeper()
    padded = {"images": torch.arange(12.0).reshape(4, 3), "index": torch.tensor([7, 8])}
    loop.run_test(Model(), {"all": [padded]}, [keeper])
    (outputs,) = keeper.outputs
    embeddings = outputs["embeddings"] if as_dict else outputs
    assert torch.equal(embeddings, padded["images"][:2])
    if as_dict:
        assert outputs["tokens"].shape == (2, 1, 3)
    assert len(padded["images"]) == 4


def test_unpad_leaves_full_batches_and_batches_without_index_as_they_are() -> None:
    outputs = torch.zeros(4, 3)
    assert loop.unpad(outputs, {}) is outputs
    assert torch.equal(loop.unpad(outputs, {"index": torch.arange(4)}), outputs)
    assert loop.unpad({"a": {"b": outputs}}, {"index": torch.arange(0)})["a"]["b"].shape == (0, 3)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_runs_in_evaluation_and_inference_mode_and_gets_its_own_mode_back(training: bool) -> None:
    model, keeper = Doubler().train(training), Keeper()
    loop.run_test(model, {"all": batches(1, 2)}, [keeper])
    assert model.modes == [(False, True)] * 2
    assert model.training is training
    assert keeper.inference == [False, False]
    assert all(outputs.is_inference() and not outputs.requires_grad for outputs in keeper.outputs)
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_model_gets_its_mode_back_after_an_error(error: type[BaseException]) -> None:
    class Failing(Doubler):
        def forward(self, images: Tensor) -> Tensor:
            raise error("no")

    model = Failing().train()
    with pytest.raises(error):
        loop.run_test(model, {"all": batches(1)}, [])
    assert model.training
    assert not torch.is_inference_mode_enabled()


def test_every_submodule_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()).train()
    model[0].eval()
    loop.run_test(model, {}, [])
    assert (model.training, model[0].training, model[1].training) == (True, False, True)


class Stream(IterableDataset[Batch]):
    """A data set that can't tell its length."""

    def __iter__(self) -> Iterator[Batch]:
        yield from batches(1, 2)


def test_a_torch_dataloader_over_a_stream_has_no_length() -> None:
    state = loop.run_test(Doubler(), {"all": DataLoader(Stream(), batch_size=None)}, [])
    assert (state["num_test_batches"], state["global_step"]) == ([None], 2)


def test_a_torch_dataloader_is_a_dataloader() -> None:
    rows: Any = [{"images": torch.full((3,), float(row)), "index": row} for row in range(5)]
    keeper = Keeper()
    state = loop.run_test(Doubler(), {"all": DataLoader(rows, batch_size=2)}, [keeper])
    assert state["num_test_batches"] == [3]
    assert [len(outputs) for outputs in keeper.outputs] == [2, 2, 1]


def test_a_connector_says_what_the_model_gets() -> None:
    class TwoInputs(nn.Module):
        def forward(self, *, pixel_values: Tensor, scale: Tensor) -> Tensor:
            return pixel_values * scale

    keeper = Keeper()
    batch = {"images": torch.ones(2, 3), "metadata": {"scale": torch.tensor([[2.0], [5.0]])}}
    connector = DataConnector({"pixel_values": "images", "scale": "metadata.scale"})
    loop.run_test(TwoInputs(), {"all": [batch]}, [keeper], connector=connector)
    assert keeper.outputs[0][:, 0].tolist() == [2.0, 5.0]


def test_a_batch_without_images_is_a_clear_error() -> None:
    with pytest.raises(ConnectorError, match="the batch has no key 'images'; it has pixels"):
        loop.run_test(Doubler(), {"all": [{"pixels": torch.ones(1, 3)}]}, [])
