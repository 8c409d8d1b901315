"""Good checkpoints of many families, made by transformers: `weld check` must find nothing above a note.

    python tests/peer/good.py --weld target/release/weld --work FOLDER
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

import torch
import transformers

SMALL = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, vocab_size=300,
             pad_token_id=0, bos_token_id=1, eos_token_id=2)
GROUPED = dict(SMALL, num_key_value_heads=2)
T5 = dict(d_model=64, d_ff=96, d_kv=24, num_layers=4, num_heads=4, vocab_size=300)
VISION = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, image_size=32,
              patch_size=8)
LATENT = dict(kv_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12, moe_intermediate_size=40,
              n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=2, first_k_dense_replace=1, n_group=2,
              topk_group=1)
EXPERTS = dict(GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48)

# Model class, config class, options of the config, options of save_pretrained.
FAMILIES = [
    ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    ("LlamaForCausalLM", "LlamaConfig", dict(GROUPED, tie_word_embeddings=True)),
    ("MistralForCausalLM", "MistralConfig", GROUPED),
    ("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    ("Qwen3ForCausalLM", "Qwen3Config", dict(GROUPED, head_dim=16)),
    ("GemmaForCausalLM", "GemmaConfig", dict(GROUPED, head_dim=16)),
    ("Gemma2ForCausalLM", "Gemma2Config", dict(GROUPED, head_dim=16)),
    ("Gemma3ForCausalLM", "Gemma3TextConfig", dict(GROUPED, head_dim=16)),
    ("Phi3ForCausalLM", "Phi3Config", GROUPED),
    ("PhiForCausalLM", "PhiConfig", GROUPED),
    ("Olmo2ForCausalLM", "Olmo2Config", GROUPED),
    ("GPTNeoXForCausalLM", "GPTNeoXConfig", SMALL),
    ("GPT2LMHeadModel", "GPT2Config", dict(n_embd=64, n_layer=4, n_head=4, vocab_size=300, n_positions=64, bos_token_id=1, eos_token_id=2)),
    ("BertForMaskedLM", "BertConfig", SMALL),
    ("BertModel", "BertConfig", SMALL),
    ("RobertaForMaskedLM", "RobertaConfig", SMALL),
    ("DistilBertForMaskedLM", "DistilBertConfig", dict(dim=64, hidden_dim=96, n_layers=4, n_heads=4, vocab_size=300)),
    ("ElectraModel", "ElectraConfig", dict(SMALL, embedding_size=32)),
    ("DebertaV2Model", "DebertaV2Config", SMALL),
    ("T5ForConditionalGeneration", "T5Config", T5),
    ("T5ForConditionalGeneration", "T5Config", dict(T5, tie_word_embeddings=False, feed_forward_proj="gated-gelu")),
    ("T5EncoderModel", "T5Config", T5),
    ("MT5ForConditionalGeneration", "MT5Config", dict(T5, num_decoder_layers=3)),
    ("BartForConditionalGeneration", "BartConfig",
     dict(d_model=64, encoder_ffn_dim=96, decoder_ffn_dim=96, encoder_layers=4, decoder_layers=4,
          encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=300, max_position_embeddings=64)),
    ("MixtralForCausalLM", "MixtralConfig", dict(GROUPED, num_local_experts=4)),
    ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", dict(EXPERTS, shared_expert_intermediate_size=48)),
    ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", dict(EXPERTS, head_dim=16)),
    ("DeepseekV3ForCausalLM", "DeepseekV3Config", dict(SMALL, **LATENT, num_key_value_heads=4, q_lora_rank=32)),
    ("DeepseekV3ForCausalLM", "DeepseekV3Config",
     dict(SMALL, **LATENT, num_key_value_heads=4, q_lora_rank=None, attention_bias=True)),
    ("DeepseekV2ForCausalLM", "DeepseekV2Config", dict(SMALL, **LATENT, num_key_value_heads=4, q_lora_rank=32)),
    ("DeepseekV2ForCausalLM", "DeepseekV2Config", dict(SMALL, **LATENT, num_key_value_heads=4, q_lora_rank=None)),
    ("Gemma3ForConditionalGeneration", "Gemma3Config",
     dict(text_config=dict(GROUPED, head_dim=24), vision_config=VISION, mm_tokens_per_image=4, image_token_index=290,
          boi_token_index=291, eoi_token_index=292)),
    ("Gemma3ForConditionalGeneration", "Gemma3Config",
     dict(text_config=dict(GROUPED, head_dim=24), vision_config=dict(VISION, vision_use_head=False),
          mm_tokens_per_image=4, image_token_index=290, boi_token_index=291, eoi_token_index=292)),
    ("ModernBertForMaskedLM", "ModernBertConfig",
     dict(hidden_size=64, intermediate_size=96, num_hidden_layers=6, num_attention_heads=4, vocab_size=300,
          pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)),
    ("GraniteForCausalLM", "GraniteConfig", GROUPED),
    ("GraniteMoeForCausalLM", "GraniteMoeConfig", dict(GROUPED, num_local_experts=4)),
    ("FalconForCausalLM", "FalconConfig", SMALL),
    ("StableLmForCausalLM", "StableLmConfig", GROUPED),
    ("Starcoder2ForCausalLM", "Starcoder2Config", GROUPED),
    ("CohereForCausalLM", "CohereConfig", GROUPED),
    ("OPTForCausalLM", "OPTConfig",
     dict(hidden_size=64, ffn_dim=96, num_hidden_layers=4, num_attention_heads=4, vocab_size=300, word_embed_proj_dim=64,
          max_position_embeddings=64)),
    ("BloomForCausalLM", "BloomConfig", dict(hidden_size=64, n_layer=4, n_head=4, vocab_size=300)),
    ("MambaForCausalLM", "MambaConfig", dict(hidden_size=64, num_hidden_layers=4, vocab_size=300)),
    ("WhisperForConditionalGeneration", "WhisperConfig",
     dict(d_model=64, encoder_layers=4, decoder_layers=4, encoder_attention_heads=4, decoder_attention_heads=4,
          encoder_ffn_dim=96, decoder_ffn_dim=96, vocab_size=300, max_source_positions=32, max_target_positions=32,
          pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3, begin_suppress_tokens=None,
          suppress_tokens=None)),
    ("ViTModel", "ViTConfig", dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
                                   image_size=32, patch_size=8)),
    ("BeitModel", "BeitConfig", dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
                                     image_size=32, patch_size=8, use_relative_position_bias=True)),
    ("SwinModel", "SwinConfig", dict(embed_dim=16, depths=[2, 2], num_heads=[2, 4], image_size=32, patch_size=4,
                                     window_size=4)),
    ("GptOssForCausalLM", "GptOssConfig", dict(GROUPED, head_dim=16, num_local_experts=4, num_experts_per_tok=2)),
    ("CohereForCausalLM", "CohereConfig", dict(GROUPED, use_qk_norm=True)),
    ("CLIPModel", "CLIPConfig",
     dict(text_config=dict(SMALL, max_position_embeddings=32),
          vision_config=dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
                             image_size=32, patch_size=8), projection_dim=32)),
]


def make(folder, model, config, options, dtype, shards):
    """Saves a model with random weights, as fine-tunes are saved."""
    torch.manual_seed(len(folder.name))
    config = getattr(transformers, config)(**options)
    made = getattr(transformers, model)(config).to(dtype)
    made.save_pretrained(folder, **({"max_shard_size": "100KB"} if shards else {}))


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--weld", required=True)
    arguments.add_argument("--work", required=True, type=pathlib.Path)
    arguments.add_argument("--only")
    arguments = arguments.parse_args()
    made = failed = 0
    for at, (model, config, options) in enumerate(FAMILIES):
        if arguments.only and arguments.only not in model:
            continue
        folder = arguments.work / f"{at:02}-{model}"
        shutil.rmtree(folder, ignore_errors=True)
        dtype = [torch.bfloat16, torch.float32, torch.float16][at % 3]
        try:
            make(folder, model, config, options, dtype, shards=at % 2 == 1)
        except Exception as error:  # this version of transformers has no such family, or another config
            print(f"not made: {model}: {type(error).__name__}: {str(error)[:100]}")
            continue
        made += 1
        run = subprocess.run([arguments.weld, "check", str(folder), "--format", "json", "-q"], capture_output=True, text=True)
        try:
            report = json.loads(run.stdout)
        except json.JSONDecodeError:
            report = {"findings": [{"severity": "error", "check": "none", "found": run.stderr}]}
        above = [finding for finding in report["findings"] if finding["severity"] != "note"]
        if run.returncode or above:
            failed += 1
        notes = len(report["findings"]) - len(above)
        print(f"{'FAILED' if run.returncode or above else 'passed'} {folder.name}: exit {run.returncode}, {notes} notes")
        for finding in above[:6]:
            where = finding.get("tensor") or finding.get("field") or finding.get("file")
            print(f"    {finding['check']} {where}: expected {finding.get('expected')}, found {finding['found']}")
    print(f"transformers {transformers.__version__}: {made} checkpoints, {failed} with findings above a note")
    sys.exit(1 if failed or not made else 0)


main()
