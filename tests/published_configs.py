"""JSON files of sizes as others publish and write them, by hand, each with its source."""

# Qwen/Qwen2.5-7B-Instruct, config.json (the language model BAGEL grew from).
QWEN25_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
# The same as Qwen2Config.save_pretrained of transformers 4 writes it again: what stands for nothing
# is null (configuration_qwen2.py, 4.46).
QWEN25_7B_V4 = QWEN25_7B | {
    "_attn_implementation_autoset": True,
    "rope_scaling": None,
    "sliding_window": None,
    "transformers_version": "4.46.3",
}
# And transformers 5: RoPE in one object, "dtype", the kind of every layer (configuration_qwen2.py,
# modeling_rope_utils.py, 5.0).
QWEN25_7B_V5 = {k: v for k, v in QWEN25_7B_V4.items() if k not in ("rope_theta", "torch_dtype")} | {
    "dtype": "bfloat16",
    "layer_types": ["full_attention"] * 28,
    "pad_token_id": None,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "transformers_version": "5.0.0",
}

# google/siglip-so400m-patch14-384, config.json, "vision_config": the fields that differ from the
# class's defaults and no other; BAGEL-7B-MoT's vit_config.json has these with image_size 980.
SIGLIP_SO400M = {
    "hidden_size": 1152,
    "image_size": 384,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
}
# google/siglip-so400m-patch14-224: 224 pixels are the class's default and left out too.
SIGLIP_SO400M_224 = {k: v for k, v in SIGLIP_SO400M.items() if k != "image_size"}
# As SiglipVisionConfig.save_pretrained of transformers 4 writes a tower alone: every field of the
# class (configuration_siglip.py, 4.46), and transformers 5, with the head that towers may have.
SIGLIP_SO400M_V4 = SIGLIP_SO400M | {
    "attention_dropout": 0.0,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-06,
    "num_channels": 3,
    "torch_dtype": "float32",
    "transformers_version": "4.46.3",
}
SIGLIP_SO400M_V5 = {k: v for k, v in SIGLIP_SO400M_V4.items() if k != "torch_dtype"} | {
    "dtype": "float32",
    "transformers_version": "5.0.0",
    "vision_use_head": True,
}

# black-forest-labs/flux, src/flux/util.py, AutoEncoderParams of FLUX.1-dev; BAGEL's
# modeling/autoencoder.py, load_ae, has "downsample": 8 beside them.
FLUX_AE = {
    "resolution": 256,
    "in_channels": 3,
    "ch": 128,
    "out_ch": 3,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "z_channels": 16,
    "scale_factor": 0.3611,
    "shift_factor": 0.1159,
}
