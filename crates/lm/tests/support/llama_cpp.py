"""llama.cpp's OpenAI-compatible server on one model, for tests: prints its address, ends with its standard input.

Usage: llama_cpp.py MODEL.gguf [THREADS]. Needs the package `xllamacpp`.
"""
import sys

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames = ["127.0.0.1"]
params.port = 0  # any free one
# Ten candidates at once; one cache for all of them, so that they share their prompt.
params.n_parallel, params.kv_unified, params.n_ctx = 10, True, 8192
params.n_gpu_layers = 0
# Its threads spin while they wait for each other: more than one crawls on a machine that is busy.
threads = int(sys.argv[2]) if len(sys.argv) > 2 else 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.verbosity = 0
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
