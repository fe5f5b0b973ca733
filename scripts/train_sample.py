"""Train the bundled backbone on the bundled images, and compare it with random weights.

Run from the repository root: `python -m scripts.train_sample`.
"""

import time
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torchvision.models import get_model, get_model_weights
from torchvision.transforms import v2

from embedx.sample import BACKBONE, CHECKPOINT, IMAGES

SEED = 0
EPOCHS = 80
BATCH_SIZE = 28
LEARNING_RATE = 4e-3

PRESET = get_model_weights(BACKBONE).DEFAULT.transforms()
AUGMENT = v2.Compose(
    [
        v2.Resize(144),
        v2.CenterCrop(144),
        v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.5, hue=0.5),
        v2.RandomRotation(180, interpolation=v2.InterpolationMode.BILINEAR, fill=128),
        v2.RandomResizedCrop(224, scale=(0.5, 1), ratio=(0.85, 1.18)),
        v2.RandomHorizontalFlip(),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(PRESET.mean, PRESET.std),
    ]
)


def load(split: Path) -> tuple[list[Image.Image], Tensor]:
    """Decode one split into memory.

    Args:
        split: Folder with one folder of images per class.

    Returns:
        The RGB images, and their classes `[N]` int64, numbered in the order of the folders' names.
    """
    paths = sorted(split.glob("*/*.*"))
    names = sorted({path.parent.name for path in paths})
    labels = torch.tensor([names.index(path.parent.name) for path in paths])
    return [Image.open(path).convert("RGB") for path in paths], labels


def build(classes: int) -> nn.Module:
    """Build the seeded, untrained model."""
    torch.manual_seed(SEED)
    model: nn.Module = get_model(BACKBONE, weights=None, num_classes=classes)
    return model.to(memory_format=torch.channels_last)


def backbone_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state, buffers included, without the classifier's."""
    state = model.state_dict()
    return {name: value.contiguous() for name, value in state.items() if not name.startswith("fc.")}


@torch.inference_mode()
def embed(weights: dict[str, Tensor], images: list[Image.Image]) -> Tensor:
    """Compute unit-length features before the classifier, with the preset's preprocessing.

    Args:
        weights: The backbone's state, as `backbone_weights` returns it.
        images: N RGB images.

    Returns:
        Features `[N, D]` float32.
    """
    model = build(classes=1)
    model.fc = nn.Identity()
    model.load_state_dict(weights)
    model.eval()
    return normalize(model(torch.stack([PRESET(image) for image in images])))


def nearest_neighbour_accuracy(weights: dict[str, Tensor]) -> float:
    """Share of validation images whose most similar (cosine) training image has their class."""
    train_images, train_labels = load(IMAGES / "train")
    val_images, val_labels = load(IMAGES / "val")
    similarity = embed(weights, val_images) @ embed(weights, train_images).T
    return (train_labels[similarity.argmax(dim=1)] == val_labels).double().mean().item()


def fit(model: nn.Module, images: list[Image.Image], labels: Tensor) -> None:
    """Train the model in place, on freshly augmented images every epoch, with a one-cycle schedule.

    Args:
        model: A classifier of `[B, 3, 224, 224]` images.
        images: N RGB images.
        labels: Their classes `[N]`.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    steps = len(images) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=EPOCHS * steps)
    model.train()
    for epoch in range(EPOCHS):
        losses = []
        for chosen in torch.randperm(len(images))[: steps * BATCH_SIZE].view(steps, BATCH_SIZE):
            batch = torch.stack([AUGMENT(images[index]) for index in chosen])
            logits = model(batch.contiguous(memory_format=torch.channels_last))
            loss = cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1:3d}  loss {sum(losses) / steps:.3f}", flush=True)


def main() -> None:
    """Train, save the checkpoint and print the accuracies."""
    images, labels = load(IMAGES / "train")
    classes = int(labels.max()) + 1
    model = build(classes)
    random_weights = {name: value.clone() for name, value in backbone_weights(model).items()}
    started = time.perf_counter()
    fit(model, images, labels)
    print(f"trained in {time.perf_counter() - started:.0f} s")

    save_file(backbone_weights(model), CHECKPOINT)
    print(f"{CHECKPOINT}: {CHECKPOINT.stat().st_size:,} bytes")
    print("validation -> train 1-NN accuracy")
    print(f"  trained {nearest_neighbour_accuracy(load_file(CHECKPOINT)):.4f}")
    print(f"  random  {nearest_neighbour_accuracy(random_weights):.4f}")
    print(f"  chance  {1 / classes:.4f}")


if __name__ == "__main__":
    main()
