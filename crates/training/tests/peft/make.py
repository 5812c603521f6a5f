"""Makes the fixtures of ../peft.rs: a tiny random llama, a PEFT adapter, and PyTorch's numbers for them.

    python make.py        (torch, transformers, peft, gguf)
"""
import json
import pathlib

import gguf
import numpy
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

here = pathlib.Path(__file__).parent
torch.manual_seed(3)
config = LlamaConfig(vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=True,
                     rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, initializer_range=0.3)
base = LlamaForCausalLM(config).eval()


def interleaved(weight, heads):
    """As llama.cpp's converter orders queries and keys."""
    out, width = weight.shape
    return weight.reshape(heads, 2, out // heads // 2, width).swapaxes(1, 2).reshape(out, width)


def write_gguf(path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([chr(ord("!") + i) for i in range(45)] + ['!"', "<|im_start|>", "<|im_end|>"])
    writer.add_token_types([1] * 46 + [3] * 2)
    writer.add_token_merges(['! "'])
    writer.add_eos_token_id(47)
    weights = {name: tensor.detach().numpy() for name, tensor in base.model.named_parameters()}
    names = {"embed_tokens": "token_embd", "norm": "output_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
             "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
             "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm"}
    for name, weight in weights.items():
        part = name.removesuffix(".weight")
        prefix = ""
        if part.startswith("layers."):
            _, idx, part = part.split(".", 2)
            prefix = f"blk.{idx}."
        if part.endswith("q_proj"):
            weight = interleaved(weight, 4)
        if part.endswith("k_proj"):
            weight = interleaved(weight, 2)
        writer.add_tensor(f"{prefix}{names[part]}.weight", numpy.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


write_gguf(here / "tiny.gguf")
base.save_pretrained(here / "hf")
model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules=[
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
for name, parameter in model.named_parameters():
    if parameter.requires_grad:
        torch.nn.init.normal_(parameter, std=0.2)
model.save_pretrained(here / "adapter")
(here / "adapter" / "README.md").unlink(missing_ok=True)

prompt = [5, 9, 1, 30, 22, 17, 8]
completions = [[3, 11, 47], [40, 2, 19, 6, 47]]
score = torch.nn.Parameter(torch.randn(32) * 0.3)


def hidden(completion):
    ids = torch.tensor([prompt + completion])
    return ids, model.base_model.model.model(input_ids=ids).last_hidden_state


def log_probability(completion):
    ids, states = hidden(completion)
    logits = torch.log_softmax(model.base_model.model.lm_head(states[:, len(prompt) - 1:-1]), -1)
    return logits.gather(-1, ids[:, len(prompt):, None]).sum()


def gradients(loss):
    model.zero_grad()
    score.grad = None
    loss.backward()
    named = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    if score.grad is not None:
        named["base_model.model.score.weight"] = score.grad.norm().item()
    return {"loss": loss.item(), "gradient_norms": {name.replace(".default", ""): norm for name, norm in named.items()}}


with model.disable_adapter(), torch.no_grad():
    reference = [log_probability(completion) for completion in completions]
numbers = {"prompt": prompt, "completions": completions, "score": score.tolist(),
           "reference": [x.item() for x in reference],
           "log_probabilities": [log_probability(c).item() for c in completions]}
numbers["sft"] = gradients(-sum(log_probability(c) for c in completions))
chosen, rejected = (log_probability(c) - r for c, r in zip(completions, reference))
numbers["dpo"] = gradients(-torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)))
chosen, rejected = (hidden(c)[1][0, -1] @ score for c in completions)
numbers["rewards"] = [chosen.item(), rejected.item()]
numbers["prm"] = gradients(-torch.nn.functional.logsigmoid(chosen - rejected) + 0.01 * (chosen + rejected) ** 2)
(here / "numbers.json").write_text(json.dumps(numbers, indent=1))
