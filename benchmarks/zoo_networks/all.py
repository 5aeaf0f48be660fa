"""Every network of the zoo that can be built here."""

from __future__ import annotations

from benchmarks.zoo_networks import convolutional, held, images, language, sequences, shaped, unusual
from benchmarks.zoo_networks.network import Network

QUICK = (
    "resnet18", "resnext", "densenet", "mobilenet_v3", "shufflenet", "shufflenet_v2", "yolo_c2f", "group_norm",
    "unet", "fpn",
    "tcn_weight_norm", "autoencoder", "experts", "glu", "gru_both_ways", "crnn", "conv_lstm", "cells",
    "multihead_attention",
    "transformer_encoder", "gpt", "llama", "vit", "mixer", "lru", "resnet50", "gpt_12_layers", "transformers/bert",
    "transformers/gpt2", "transformers/llama_grouped", "transformers/t5", "transformers/whisper", "transformers/swin",
    "transformers/mamba", "timm/resnet18", "timm/mobilenetv3_small_050", "timm/convnext_atto", "timm/ghostnet_050",
    "timm/test_vit", "timm/mobilevit_xxs", "timm/regnety_002", "timm/hrnet_w18_small",
)  # fmt: skip
"""A representative third."""


def all_networks() -> tuple[tuple[Network, ...], tuple[str, ...]]:
    """Return the networks, and notes on families that cannot be built because a package is missing."""
    handmade = (convolutional, shaped, sequences, held, unusual)
    networks = [network for source in handmade for network in source.NETWORKS]
    notes = []
    for family, source in (("transformers", language), ("timm", images)):
        try:
            networks += source.networks()
        except ImportError as error:
            notes.append(f"{family} left out: {error} (pip install {family})")
    return tuple(networks), tuple(notes)
