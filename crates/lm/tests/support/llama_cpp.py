"""llama.cpp's OpenAI-compatible server on one model, for tests and timing: prints its address, ends with its
standard input.

Usage: llama_cpp.py MODEL.gguf [THREADS [REQUESTS]]. REQUESTS of ten candidates each run at once. Needs the package
`xllamacpp`.
"""
import sys

import xllamacpp

threads, requests = (int(number) for number in (sys.argv[2:] + ["1", "1"][len(sys.argv) - 2:]))
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames = ["127.0.0.1"]
params.port = 0  # any free one
# One cache for all candidates, so that they share their prompt.
params.n_parallel, params.kv_unified, params.n_ctx = 10 * requests, True, 8192 * requests
params.n_gpu_layers = 0
# Its threads spin while they wait for each other: more than one crawls on a machine that is busy.
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.verbosity = 0
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
