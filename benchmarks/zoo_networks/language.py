"""Networks of `transformers`, from small configurations with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo_networks.network import Maker, Network

SMALL = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 100,
    "max_position_embeddings": 64,
}  # fmt: skip
WITHOUT_WORDS = {
    key: SMALL[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
}
DECODER = {**SMALL, "use_cache": False}
GROUPED = {**DECODER, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 100, "n_embd": 48, "n_layer": 2, "n_head": 4, "use_cache": False}
BOTH = {
    "d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96, "decoder_ffn_dim": 96,
}  # fmt: skip
STAGES = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}

TEXT: dict[str, tuple[str, str, Mapping[str, Any]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", SMALL),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", SMALL),
    "electra": ("ElectraForSequenceClassification", "ElectraConfig", {**SMALL, "embedding_size": 32}),
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", {**SMALL, "embedding_size": 32}),
    "distilbert": (
        "DistilBertForSequenceClassification", "DistilBertConfig",
        {"vocab_size": 100, "dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 96},
    ),
    "mpnet": ("MPNetForSequenceClassification", "MPNetConfig", SMALL),
    "camembert": ("CamembertForTokenClassification", "CamembertConfig", SMALL),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {**GPT2, "n_positions": 64}),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", DECODER),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", {**GPT2, "n_positions": 64, "rotary_dim": 4}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER),
    "llama_grouped": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**GROUPED, "head_dim": 12}),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**GROUPED, "head_dim": 12}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**GROUPED, "head_dim": 12}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", GROUPED),
    "granite": ("GraniteForCausalLM", "GraniteConfig", GROUPED),
    "cohere": ("CohereForCausalLM", "CohereConfig", GROUPED),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", {**GROUPED, "partial_rotary_factor": 0.5}),
    "phi": ("PhiForCausalLM", "PhiConfig", DECODER),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {**DECODER, "pad_token_id": 0}),
    "opt": (
        "OPTForCausalLM", "OPTConfig",
        {"vocab_size": 100, "hidden_size": 48, "num_hidden_layers": 2, "ffn_dim": 96, "num_attention_heads": 4,
         "max_position_embeddings": 64, "word_embed_proj_dim": 48, "use_cache": False},
    ),
    "bloom": (
        "BloomForCausalLM", "BloomConfig", {"vocab_size": 100, "hidden_size": 48, "n_layer": 2, "n_head": 4,
        "use_cache": False},
    ),
    "falcon": (
        "FalconForCausalLM", "FalconConfig", {key: DECODER[key] for key in DECODER if key not in
        ("intermediate_size", "max_position_embeddings")},
    ),
    "biogpt": ("BioGptForCausalLM", "BioGptConfig", DECODER),
    "cohere2": ("Cohere2ForCausalLM", "Cohere2Config", {**GROUPED, "sliding_window": 8}),
    "diffllama": ("DiffLlamaForCausalLM", "DiffLlamaConfig", GROUPED),
    "ernie4_5": ("Ernie4_5ForCausalLM", "Ernie4_5Config", {**GROUPED, "head_dim": 12}),
    "exaone4": ("Exaone4ForCausalLM", "Exaone4Config", GROUPED),
    "glm4": ("Glm4ForCausalLM", "Glm4Config", {**GROUPED, "head_dim": 12, "pad_token_id": 0}),
    "helium": ("HeliumForCausalLM", "HeliumConfig", {**GROUPED, "head_dim": 12, "pad_token_id": 0}),
    "mixtral": (
        "MixtralForCausalLM", "MixtralConfig", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "mamba": (
        "MambaForCausalLM", "MambaConfig", {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2,
        "state_size": 8, "use_cache": False},
    ),
}  # fmt: skip
"""Model, configuration, its arguments; they read token numbers."""

IMAGES: dict[str, tuple[str, str, Mapping[str, Any], tuple[int, ...]]] = {
    "vit": (
        "ViTForImageClassification", "ViTConfig", {**WITHOUT_WORDS, "image_size": 32, "patch_size": 8}, (2, 3,
        32, 32),
    ),
    "deit": (
        "DeiTForImageClassification", "DeiTConfig", {**WITHOUT_WORDS, "image_size": 32, "patch_size": 8}, (2, 3,
        32, 32),
    ),
    "dinov2": (
        "Dinov2ForImageClassification", "Dinov2Config", {**WITHOUT_WORDS, "mlp_ratio": 2, "image_size": 32,
        "patch_size": 8}, (2, 3, 32, 32),
    ),
    "swin": (
        "SwinForImageClassification", "SwinConfig",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        (2, 3, 32, 32),
    ),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig", STAGES, (2, 3, 64, 64)),
    "resnet": (
        "ResNetForImageClassification", "ResNetConfig", {**STAGES, "embedding_size": 16, "layer_type": "basic"},
        (2, 3, 64, 64),
    ),
    "segformer": (
        "SegformerForSemanticSegmentation", "SegformerConfig",
        {**STAGES, "num_attention_heads": [1, 2, 3, 4], "decoder_hidden_size": 32}, (2, 3, 64, 64),
    ),
    "mobilevit": (
        "MobileViTForImageClassification", "MobileViTConfig",
        {"image_size": 64, "hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 16, 24, 32, 48, 56, 64],
         "num_attention_heads": 4},
        (2, 3, 64, 64),
    ),
    "wav2vec2": (
        "Wav2Vec2ForSequenceClassification", "Wav2Vec2Config",
        {**WITHOUT_WORDS, "conv_dim": (16, 16, 16), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3),
         "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0},
        (2, 800),
    ),
    "ast": (
        "ASTForAudioClassification", "ASTConfig", {**WITHOUT_WORDS, "max_length": 64, "num_mel_bins": 32}, (2,
        64, 32),
    ),
}  # fmt: skip
"""The same for networks that read an image or a sound of some shape."""


class Translation(nn.Module):
    """An encoder and a decoder that take their inputs by position."""

    def __init__(self, model: nn.Module, source: str) -> None:
        super().__init__()
        self.model, self.source = model, source

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.model(**{self.source: source}, decoder_input_ids=target, use_cache=False).logits
        return logits


PAIRS: dict[str, tuple[str, str, Mapping[str, Any], str]] = {
    "t5": (
        "T5ForConditionalGeneration", "T5Config",
        {"vocab_size": 100, "d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 2, "num_heads": 4}, "input_ids",
    ),
    "bart": (
        "BartForConditionalGeneration", "BartConfig", {**BOTH, "vocab_size": 100, "max_position_embeddings":
        64}, "input_ids",
    ),
    "marian": (
        "MarianMTModel", "MarianConfig",
        {**BOTH, "vocab_size": 100, "max_position_embeddings": 64, "pad_token_id": 0, "decoder_start_token_id": 0},
        "input_ids",
    ),
    "whisper": (
        "WhisperForConditionalGeneration", "WhisperConfig",
        {**BOTH, "vocab_size": 100, "num_mel_bins": 16, "max_source_positions": 32, "max_target_positions": 32,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}, "input_features",
    ),
}  # fmt: skip
"""Encoders with a decoder, and what the encoder's input is called."""


def _built(model: str, config: str, options: Mapping[str, Any]) -> nn.Module:
    import transformers

    built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
    return built


def _text(entry: tuple[str, str, Mapping[str, Any]]) -> Maker:
    return lambda: (_built(*entry), (torch.randint(5, 90, (2, 12)),))


def _image(entry: tuple[str, str, Mapping[str, Any], tuple[int, ...]]) -> Maker:
    return lambda: (_built(*entry[:3]), (torch.randn(entry[3]),))


def _pair(entry: tuple[str, str, Mapping[str, Any], str]) -> Maker:
    def make() -> tuple[nn.Module, tuple[Tensor, ...]]:
        source = torch.randint(5, 90, (2, 12)) if entry[3] == "input_ids" else torch.randn(2, 16, 64)
        return Translation(_built(*entry[:3]), entry[3]), (source, torch.randint(5, 90, (2, 8)))

    return make


def networks() -> tuple[Network, ...]:
    """Return the networks.

    Raises
    ------
    ImportError
        If transformers is not installed.
    """
    import transformers  # noqa: F401  whether it is there

    makers = {name: _text(text) for name, text in TEXT.items()}
    makers |= {name: _image(image) for name, image in IMAGES.items()}
    makers |= {name: _pair(pair) for name, pair in PAIRS.items()}
    return tuple(Network(f"transformers/{name}", "transformers", make) for name, make in makers.items())
