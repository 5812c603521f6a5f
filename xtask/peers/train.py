"""PyTorch with PEFT on the work of `rag-gym bench train`; prints one JSON document.

A model of SmolLM2-135M's shape with random weights, LoRA of rank 16 on queries, keys and values, AdamW. One sequence
whose last 64 tokens are learnt, then a preference pair as TRL trains it: two whole sequences.
"""

import argparse
import json
import resource
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

COMPLETION = 64

parser = argparse.ArgumentParser()
parser.add_argument("dtype", choices=["float32", "bfloat16"])
parser.add_argument("--tokens", type=int, default=512)
parser.add_argument("--steps", type=int, default=4)
parser.add_argument("--threads", type=int, default=2)
options = parser.parse_args()

torch.set_num_threads(options.threads)
torch.manual_seed(0)
shape = LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                    num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)
base = LlamaForCausalLM(shape).to(getattr(torch, options.dtype))
model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj"]))
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimiser = torch.optim.AdamW(trained, lr=1e-4)


def random(sequences, tokens):
    return torch.randint(0, shape.vocab_size, (sequences, tokens))


def completion_log_probability(tokens):
    # The head is computed where it is needed only, as a careful user of PyTorch would.
    hidden = base.model(input_ids=tokens).last_hidden_state[:, -COMPLETION - 1:-1]
    of_all = torch.log_softmax(base.lm_head(hidden).float(), -1)
    return of_all.gather(-1, tokens[:, -COMPLETION:, None]).sum((1, 2))


def sequence():
    return -completion_log_probability(random(1, options.tokens)).mean() / COMPLETION


def pair():
    prompt = random(1, options.tokens - COMPLETION).expand(2, -1)
    chosen, rejected = completion_log_probability(torch.cat([prompt, random(2, COMPLETION)], 1))
    return -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected))


def seconds(loss):
    """Of an optimiser step: the median of several, after one that does not count."""
    times = []
    for _ in range(options.steps + 1):
        start = time.perf_counter()
        loss().backward()
        optimiser.step()
        optimiser.zero_grad()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


print(json.dumps({
    "tokens_per_second": options.tokens / seconds(sequence),
    "pairs_per_second": 1 / seconds(pair),
    "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
