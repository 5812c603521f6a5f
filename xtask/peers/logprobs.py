"""Compares log-probabilities of a text's tokens with those of f32 arithmetic on the same, dequantised weights.

Takes what `rag-gym bench logprobs --json` printed and prints one JSON document: the mean absolute difference in nats,
of ours over all tokens and of llama.cpp over the first ones.
"""

import argparse
import json
import os

import torch
from transformers import AutoModelForCausalLM

# llama.cpp tells the likeliest tokens only; those beyond are passed over.
LIKELIEST = 2000


def reference(model, windows):
    folder, file = os.path.split(os.path.abspath(model))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    found = []
    with torch.no_grad():
        for window in windows:
            tokens = torch.tensor([window])
            spread = model(input_ids=tokens).logits[0, :-1].log_softmax(-1)
            found.append(spread.gather(1, tokens[0, 1:, None])[:, 0].tolist())
    return found


def llama_cpp(model, windows, most):
    """Yields (window, position, log-probability) of the token at a position after those before it."""
    if most == 0:
        return
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = model
    settings.n_ctx, settings.n_gpu_layers, settings.verbosity = 2048, 0, 0
    server = xllamacpp.Server(settings)
    for at, window in enumerate(windows):
        for position in range(1, len(window)):
            if most == 0:
                return
            most -= 1
            body = {"prompt": window[:position], "n_predict": 1, "n_probs": LIKELIEST, "temperature": 1.0,
                    "cache_prompt": True}
            answer = server.handle_completions(body)
            answer = answer if isinstance(answer, dict) else json.loads(answer)
            for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
                if entry["id"] == window[position]:
                    yield at, position, entry["logprob"]
                    break


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("ours", help="what `rag-gym bench logprobs --json` printed")
    parser.add_argument("--model", required=True)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--llama-tokens", type=int, default=1000)
    options = parser.parse_args()
    with open(options.ours) as file:
        ours = json.load(file)
    tokens = ours["tokens"]
    windows = [tokens[at:at + options.window] for at in range(0, len(tokens), options.window)]
    windows = [window for window in windows if len(window) > 1]
    true = reference(options.model, windows)
    flat = [x for window in true for x in window]
    assert len(flat) == len(ours["logprobs"]), (len(flat), len(ours["logprobs"]))
    mean = lambda numbers: sum(numbers) / max(1, len(numbers))
    theirs = [abs(x - true[at][position - 1])
              for at, position, x in llama_cpp(options.model, windows, options.llama_tokens)]
    first = [abs(a - b) for a, b in zip(flat, ours["logprobs"])]
    print(json.dumps({
        "tokens": len(flat),
        "mean_difference": mean(first),
        "mean_logprob": mean(ours["logprobs"]),
        "mean_logprob_f32": mean(flat),
        "llama_cpp_tokens": len(theirs),
        "llama_cpp_mean_difference": mean(theirs),
        "mean_difference_on_the_same": mean(first[:options.llama_tokens]),
    }))


main()
