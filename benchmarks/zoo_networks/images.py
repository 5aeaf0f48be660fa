"""Image networks of timm, with random weights, as its registry builds them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.zoo_networks.network import Maker, Network
from benchmarks.zoo_networks.stand_in import stand_in

SIZES = {
    64: (
        "resnet18", "resnet50d", "seresnet18", "mobilenetv2_050", "mobilenetv3_small_050", "mobilenetv4_conv_small_035",
        "efficientnet_b0", "mnasnet_050", "tinynet_e", "lcnet_035", "hardcorenas_a", "mixnet_s", "regnetx_002",
        "regnety_002", "regnetz_005", "densenet121", "dla34", "ghostnet_050", "ghostnetv3_050", "repghostnet_050",
        "hrnet_w18_small", "repvgg_a0", "mobileone_s0", "repvit_m0_9", "convnext_atto", "convnextv2_atto",
        "inception_next_atto", "poolformer_s12", "caformer_s18", "fastvit_t8", "mobilevit_xxs", "mobilevitv2_050",
        "edgenext_xx_small", "starnet_s050", "rexnet_100", "cspresnet50", "dpn48b", "res2net50_26w_4s", "resnest14d",
        "skresnet18", "selecsls42", "ese_vovnet19b_dw", "pvt_v2_b0", "xception41", "hgnetv2_b0", "vgg11",
        "efficientvit_b0", "resnetv2_50", "eca_resnet33ts", "gcresnet33ts", "nf_regnet_b0", "rdnet_tiny",
        "test_efficientnet_gn", "test_efficientnet_ln", "test_byobnet", "test_nfnet", "test_mambaout", "test_vit2",
    ),
    96: ("inception_v4",),
    160: ("test_vit", "test_vit3", "test_vit4", "test_maxvit", "test_coatnet"),
    224: (
        "deit_tiny_distilled_patch16_224", "mixer_s32_224", "levit_128s", "coat_lite_tiny", "tiny_vit_5m_224",
        "xcit_nano_12_p16_224", "cait_xxs24_224", "swin_tiny_patch4_window7_224", "pit_ti_224", "visformer_tiny",
        "efficientformer_l1", "gmlp_ti16_224", "resmlp_12_224", "convit_tiny", "focalnet_tiny_srf", "efficientvit_m0",
    ),
    240: ("crossvit_tiny_240",),
    256: ("swinv2_tiny_window8_256",),
}  # fmt: skip
"""By the size of the image."""


def _maker(name: str, size: int) -> Maker:
    def make() -> tuple[nn.Module, tuple[Tensor, ...]]:
        import timm

        return timm.create_model(name, num_classes=10), (torch.randn(2, 3, size, size),)

    return make


def networks() -> tuple[Network, ...]:
    """Return the networks.

    Raises
    ------
    ImportError
        If timm is not installed.
    """
    stand_in()
    import timm  # noqa: F401  whether it is there

    return tuple(Network(f"timm/{name}", "timm", _maker(name, size)) for size, names in SIZES.items() for name in names)
