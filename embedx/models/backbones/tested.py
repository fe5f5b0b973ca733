"""Well-known models that the tests run with random weights, each with what `embedx extract` needs for it."""

from __future__ import annotations

from typing import Final, NamedTuple


class KnownModel(NamedTuple):
    """A model that is known to run."""

    title: str
    """The name by which people know it."""
    backbone: str
    """The value of --backbone."""
    options: tuple[str, ...] = ()
    """Further options that it needs."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of `embedx extract`."""
        return ("--backbone", self.backbone, *self.options)


_UNI = ("model_name=vit_large_patch16_224", "init_values=1e-5", "num_classes=0", "dynamic_img_size=true")
_IMAGENET = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")

TESTED: Final = (
    KnownModel("ResNet-50", "resnet50"),
    KnownModel("ConvNeXt", "convnext_base"),
    KnownModel("ConvNeXt of ImageNet-22k", "timm:convnext_base.fb_in22k"),
    KnownModel("EfficientNetV2", "efficientnet_v2_s"),
    KnownModel("Swin V2", "swin_v2_b"),
    KnownModel("ViT of ImageNet-21k", "timm:vit_base_patch16_224.augreg_in21k"),
    KnownModel("DINOv2 ViT-S", "timm:vit_small_patch14_dinov2.lvd142m"),
    KnownModel("DINOv2 ViT-B", "timm:vit_base_patch14_dinov2.lvd142m", ("--image-size", "224")),
    KnownModel("DINOv3 ViT-B", "timm:vit_base_patch16_dinov3.lvd1689m"),
    KnownModel("DINOv3 ConvNeXt", "timm:convnext_tiny.dinov3_lvd1689m"),
    KnownModel("CLIP ViT-B (OpenAI)", "timm:vit_base_patch16_clip_quickgelu_224.openai"),
    KnownModel("SigLIP 2 ViT-B", "timm:vit_base_patch16_siglip_gap_224.v2_webli"),
    KnownModel("OpenCLIP ViT-B", "openclip:ViT-B-32/laion2b_s34b_b79k"),
    KnownModel("EVA-02 ViT-B", "timm:eva02_base_patch14_224.mim_in22k"),
    KnownModel(
        "UNI (pathology)",
        "timm.models:create_model",
        (
            *(word for argument in _UNI for word in ("--backbone-arg", argument)),
            *("--checkpoint", "pytorch_model.bin", *_IMAGENET, "--resize", "224", "--crop", "224"),
        ),
    ),
)
"""The models that a test builds, under these names, and runs on images; their weights are random there."""

TESTED_BY_CLASS: Final = (
    KnownModel("DINOv2 ViT-B", "hf:facebook/dinov2-base"),
    KnownModel("DINOv3 ViT-B", "hf:facebook/dinov3-vitb16-pretrain-lvd1689m"),
    KnownModel("CLIP ViT-B", "hf:openai/clip-vit-base-patch16"),
    KnownModel("SigLIP 2 ViT-B", "hf:google/siglip2-base-patch16-224"),
)
"""The models of the Hugging Face hub of whose class a test runs a small one."""
