"""Image networks of timm, with random weights, as its registry builds them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo_networks.network import Maker, Network
from zoo_networks.stand_in import stand_in

SIZES = {
    32: ("test_vit2",),
    64: (
        "resnet18", "resnet50d", "seresnet18", "mobilenetv2_050", "mobilenetv3_small_050", "mobilenetv4_conv_small_035",
        "efficientnet_lite0", "efficientnet_b0", "mnasnet_050", "fbnetc_100", "tinynet_e", "lcnet_035", "regnetx_002",
        "regnety_002", "regnetz_005", "densenet121", "dla34", "ghostnet_050", "repghostnet_050", "hrnet_w18_small",
        "repvgg_a0", "convnext_atto", "convnextv2_atto", "inception_next_atto", "poolformer_s12", "poolformerv2_s12",
        "fastvit_t8", "mobilevit_xxs", "mobilevitv2_050", "edgenext_xx_small", "starnet_s050", "mobileone_s0",
        "rexnet_100", "hardcorenas_a", "cspresnet50", "dpn48b", "res2net50_26w_4s", "resnest14d", "sknasnet",
        "skresnet18", "selecsls42", "vovnet39a", "ese_vovnet19b_dw", "nf_regnet_b0", "pvt_v2_b0", "efficientformerv2_s0",
        "repvit_m0_9", "xception41", "mixnet_s", "gernet_s", "darknet53", "test_resnet", "test_efficientnet",
        "test_efficientnet_gn", "test_efficientnet_ln", "test_convnext", "test_byobnet", "test_nfnet", "test_mambaout",
        "ghostnetv2_100", "mobilenetv4_hybrid_medium", "bat_resnext26ts", "eca_resnet33ts", "gcresnet33ts", "resnetv2_50",
        "vgg11", "inception_v3", "hgnetv2_b0", "rdnet_tiny", "efficientvit_b0", "mambaout_femto", "convformer_s18",
        "caformer_s18", "ghostnetv3_050", "lambda_resnet26t", "halonet26t",
    ),
    96: ("inception_v4", "nasnetalarge"),
    160: ("test_vit", "test_vit3", "test_vit4", "test_maxvit", "test_coatnet"),
    224: (
        "vit_tiny_patch16_224", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "mixer_s32_224",
        "levit_128s", "coat_lite_tiny", "tiny_vit_5m_224", "xcit_nano_12_p16_224", "cait_xxs24_224", "swin_tiny_patch4_window7_224",
        "pit_ti_224", "visformer_tiny", "efficientformer_l1", "gmlp_ti16_224", "resmlp_12_224", "convit_tiny",
        "twins_pcpvt_small", "davit_tiny", "focalnet_tiny_srf", "mvitv2_tiny", "nest_tiny", "beit_base_patch16_224",
        "gcvit_xxtiny", "efficientvit_m0", "hiera_tiny_224", "volo_d1_224", "tnt_s_legacy_patch16_224", "mobilenetv5_base",
    ),
    240: ("crossvit_tiny_240",),
    256: ("swinv2_tiny_window8_256", "maxvit_pico_rw_256", "swiftformer_xs"),
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
