"""Another engine on the work of `rag-gym bench generate`; prints one JSON document.

Every engine is asked for the same four things in its best way: new tokens for a prompt, several samples of one prompt
in one request. What is measured is the wall time of a request.
"""

import argparse
import json
import os
import random
import resource
import time


def llama_cpp(options):
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = options.model
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = options.threads
    settings.n_ctx, settings.n_parallel, settings.kv_unified = 16384, 10, True
    settings.n_gpu_layers = settings.verbosity = 0
    server = xllamacpp.Server(settings)

    def request(prompt, new_tokens, samples):
        # With `n`, the server computes the prompt once and copies it for each sample.
        body = {"prompt": prompt, "n_predict": new_tokens, "n": samples, "temperature": 0.8,
                "ignore_eos": True, "cache_prompt": False}
        answer = server.handle_completions(body)
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        assert len(answer.get("choices", [answer])) == samples, answer

    return request


def openvino(options, **properties):
    import numpy
    import openvino
    import openvino_genai

    scheduling = openvino_genai.SchedulerConfig()
    scheduling.cache_size, scheduling.max_num_batched_tokens = 2, 4096
    scheduling.enable_prefix_caching = False
    pipeline = openvino_genai.LLMPipeline(options.model, "CPU", scheduler_config=scheduling,
                                          INFERENCE_NUM_THREADS=options.threads, **properties)

    def request(prompt, new_tokens, samples):
        config = openvino_genai.GenerationConfig()
        config.min_new_tokens = config.max_new_tokens = new_tokens
        config.ignore_eos = config.do_sample = True
        config.temperature, config.num_return_sequences = 0.8, samples
        answer = pipeline.generate(openvino.Tensor(numpy.array([prompt], dtype=numpy.int64)), config)
        assert [len(tokens) for tokens in answer.tokens] == [new_tokens] * samples

    return request


def transformers(options, dtype, device="cpu"):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(options.threads)
    folder, file = os.path.split(os.path.abspath(options.model))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=getattr(torch, dtype)).to(device).eval()

    @torch.no_grad()
    def request(prompt, new_tokens, samples):
        tokens = torch.tensor([prompt], device=device)
        answer = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=True, temperature=0.8,
                                min_new_tokens=new_tokens, max_new_tokens=new_tokens, num_return_sequences=samples,
                                pad_token_id=0)
        # Copied: a card answers before it is done.
        assert answer.cpu().shape == (samples, len(prompt) + new_tokens)

    return request


ENGINES = {
    "llama.cpp": llama_cpp,
    "openvino": openvino,
    "openvino-f32": lambda options: openvino(options, INFERENCE_PRECISION_HINT="f32"),
    "transformers-f32": lambda options: transformers(options, "float32"),
    "transformers-bf16": lambda options: transformers(options, "bfloat16"),
    "transformers-cuda": lambda options: transformers(options, "bfloat16", "cuda"),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    request = ENGINES[options.engine](options)
    draw = random.Random(1)

    def seconds(prompt_tokens, new_tokens, samples=1):
        if options.engine.endswith("-cuda"):
            # It loads a kernel when that is first used.
            request([draw.randrange(500, 40000) for _ in range(prompt_tokens)], new_tokens, samples)
        prompt = [draw.randrange(500, 40000) for _ in range(prompt_tokens)]
        start = time.perf_counter()
        request(prompt, new_tokens, samples)
        return time.perf_counter() - start

    seconds(64, 4)
    prefill = [{"tokens": n, "tokens_per_second": n / seconds(n, 1)} for n in (512, 1024)]
    few = seconds(256, 4)
    decode = 60 / (seconds(256, 64) - few)
    candidates = [{"prompt_tokens": n, "n": 10, "new_tokens": 64, "tokens_per_second": 640 / seconds(n, 64, 10)}
                  for n in (256, 1024)]
    print(json.dumps({"prefill": prefill, "decode_tokens_per_second": decode, "candidates": candidates,
                      "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


main()
