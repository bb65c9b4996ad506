"""What a field of a Hugging Face configuration has to say of a decoder that samx computes. No torch.

Source: transformers' SamConfig, Sam2Config, Sam2VideoConfig, EdgeTamConfig and the models that are built from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# The value that a field must have, of a DecoderSpec.
Rule = Callable[[Any], Any]
Sections = Mapping[str, Mapping[str, Rule]]

# These sections have no field that is not listed here, or among BOOKKEEPING.
COMPLETE = ("prompt_encoder_config", "mask_decoder_config")
# Spec field -> section and field that it is read from, where the field is among a family's.
READ: Mapping[str, tuple[str, str]] = {
    "heads": ("mask_decoder_config", "num_attention_heads"),
    "norm_eps": ("mask_decoder_config", "layer_norm_eps"),
    "stability_fallback": ("mask_decoder_config", "dynamic_multimask_via_stability"),
    "stability_delta": ("mask_decoder_config", "dynamic_multimask_stability_delta"),
    "stability_threshold": ("mask_decoder_config", "dynamic_multimask_stability_thresh"),
}
RANGES: Mapping[str, tuple[float, float]] = {
    "heads": (0, 8192),
    "norm_eps": (1e-12, 0.1),
    "stability_fallback": (0, 1),
    "stability_delta": (0, 1e6),
    "stability_threshold": (0, 1e6),
}
NESTED = ("tracker_config", "detector_config")  # of a model of several: whose sections are a decoder's, and others
SIZES: Mapping[str, str] = {"image_size": "image_size", "patch_px": "patch_size"}  # of the sections below
SIZED_SECTIONS = ("prompt_encoder_config", "vision_config")

PROMPT_ENCODER: Mapping[str, Rule] = {
    "hidden_size": lambda spec: spec.width,
    "image_size": lambda spec: spec.image_size,
    "patch_size": lambda spec: spec.patch_px,
    "image_embedding_size": lambda spec: spec.grid,
    "mask_input_channels": lambda spec: spec.mask_prompt_channels,
    "num_point_embeddings": lambda _: 4,
    "hidden_act": lambda _: "gelu",
    "layer_norm_eps": lambda _: 1e-6,
}
MASK_DECODER: Mapping[str, Rule] = {
    "hidden_size": lambda spec: spec.width,
    "mlp_dim": lambda spec: spec.mlp_width,
    "num_hidden_layers": lambda spec: spec.depth,
    "num_attention_heads": lambda spec: spec.heads,
    "attention_downsample_rate": lambda spec: spec.width / spec.cross_attention_width,
    "num_multimask_outputs": lambda spec: spec.mask_tokens - 1,
    "iou_head_depth": lambda spec: spec.iou_head_depth,
    "iou_head_hidden_dim": lambda spec: spec.iou_head_width,
}
VISION: Mapping[str, Rule] = {
    "image_size": lambda spec: spec.image_size,
    "patch_size": lambda spec: spec.patch_px,
    "output_channels": lambda spec: spec.width,
    "num_pos_feats": lambda spec: spec.width / 2,
}
SAM: Sections = {
    "prompt_encoder_config": PROMPT_ENCODER,
    "mask_decoder_config": {
        **MASK_DECODER, "hidden_act": lambda _: "relu", "layer_norm_eps": lambda spec: spec.norm_eps,
    },
    "vision_config": VISION,
}  # fmt: skip
SAM2: Sections = {
    "prompt_encoder_config": {**PROMPT_ENCODER, "scale": lambda _: 1},
    "mask_decoder_config": {
        **MASK_DECODER,
        "hidden_act": lambda _: "gelu",  # of the upscaling; the transformer's MLPs have ReLU whatever it says
        "dynamic_multimask_via_stability": lambda spec: spec.stability_fallback,
        "dynamic_multimask_stability_delta": lambda spec: spec.stability_delta,
        "dynamic_multimask_stability_thresh": lambda spec: spec.stability_threshold,
    },
}
# Fields that every configuration of transformers may carry; they concern its saving, its training, and text models.
_NAMES = """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash _name_or_path
    add_cross_attention architectures attn_implementation bad_words_ids base_model_pp_plan base_model_tp_plan
    begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id id2label initializer_range
    is_decoder is_encoder_decoder label2id length_penalty max_length min_length model_type no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states output_scores pad_token_id
    prefix problem_type pruned_heads remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings
    tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p use_bfloat16 use_return_dict
"""
BOOKKEEPING = frozenset(_NAMES.split())


def sections_of(config: Mapping[str, Any], name: str) -> list[Any]:
    """List the sections of a name, that of the decoder's model first."""
    parts = [config, *(config.get(nested) for nested in NESTED)]
    return [part[name] for part in parts if isinstance(part, Mapping) and name in part]
