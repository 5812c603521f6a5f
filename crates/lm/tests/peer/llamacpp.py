"""What llama.cpp makes of a model file: token ids of hostile texts, and greedy continuations.

Writes the fixtures that `crates/lm/tests/llamacpp.rs` compares this program with. From the repository's root, with
`pip install xllamacpp==2026.10.11549` (llama.cpp with its server, prebuilt):

    python crates/lm/tests/peer/llamacpp.py target/models/smollm2-135m.gguf crates/lm/tests/fixtures/llamacpp-smollm2-135m.json
    python crates/lm/tests/peer/llamacpp.py qwen2.5-coder-0.5b.gguf crates/lm/tests/fixtures/llamacpp-qwen2.5-coder-0.5b.json

With `pip install gguf` as well, the same weights in f32, which llama.cpp multiplies in f32; greedy continuations only:

    python crates/lm/tests/peer/llamacpp.py target/models/smollm2-135m.gguf crates/lm/tests/fixtures/llamacpp-smollm2-135m-f32.json --f32

The prompts were written before either program had answered them, and none was taken out afterwards.
"""

import hashlib
import json
import os
import sys
import tempfile
import urllib.request

import xllamacpp

NEW_TOKENS = 24
ALTERNATIVES = 5

SYSTEM = "You answer in one short sentence."
PROMPTS = [
    (None, "What is the capital of France?"),
    (None, "Name three animals that live in the sea."),
    (None, "Write a sentence about rain."),
    (SYSTEM, "Who wrote the play Hamlet?"),
    (SYSTEM, "What is 12 + 7?"),
    (SYSTEM, "Why is the sky blue?"),
    (None, "Translate to French: good morning, my friend."),
    (None, "Count from 1 to 15."),
    (None, "Give me a Python function that adds two numbers."),
    (None, 'Return JSON with the keys "city" and "country" for Tokyo.'),
    (None, "Summarise: The cat sat on the mat. The dog barked at the cat. The cat ran up a tree."),
    (None, "Question: Which country borders both Spain and Germany?\nSearch: neighbours of Spain\nFound: France, Portugal, Andorra\nAnswer:"),
    ("Reply with a query or an answer.", "Question: In which year was the director of Jaws born?"),
    (None, "List the planets of the solar system in order."),
    (None, "Is the following statement true or false? Water boils at 50 degrees Celsius at sea level."),
    (None, "Continue the story: Once upon a time, in a small village by the river,"),
    (None, "Explain photosynthesis to a child."),
    (None, "What does the word 'ubiquitous' mean?"),
    (None, "¿Cuál es la capital de España?"),
    (None, "日本の首都はどこですか?"),
    (None, "Convert 3 kilometres to metres."),
    (None, "Write a haiku about autumn leaves."),
    (None, "Which is larger, 0.9 or 0.11?"),
    (None, "Passages:\n1. Vienna is the capital of Austria.\n2. Bern is the capital of Switzerland.\nLook up: capital of Austria\nFound:"),
    (None, "Write an email to my landlord about a broken heater."),
    (None, "SELECT name FROM people WHERE age > 30; -- what does this do?"),
    (None, "What are the ingredients of bread?"),
    (None, "Give the opposite of: hot, tall, fast, old."),
    (None, "😀 What does this emoji mean?"),
    (None, "Who was the first person to walk on the Moon, and in which year did it happen?"),
    ("You are a pirate. " * 12, "Where is the treasure?"),
    (None, "A train leaves at 10:15 and arrives at 13:40. How long does the journey take? Think step by step."),
]

TEXTS = [
    " ",
    "  ",
    "\n",
    "\r\n",
    "\r",
    "\t\t x",
    "a  b   c    d",
    "trailing   ",
    "   leading",
    "line\nline\n\nline\n\n\n  indented\r\nwindows\r\n\r\nend\n",
    "\u00a0\u2003\u3000\u200b\ufeffodd spaces\u2028\u2029\u0085",
    "0 12 345 6789 1234567890 3.14159 1,000,000 -5 1e-9 0x1F",
    "٠١٢٣ ४५६ ５６７ ½ ² Ⅷ ①",
    "I'm you're he's we'll they've I'd DON'T IT'S l'été o'clock ''s",
    "😀 🐍🐍 👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇫🇷🇩🇪 ☠️ 1️⃣",
    "e\u0301 \u00e9 a\u0308\u0323\u0330 Z\u0351\u036b\u0343a\u0334l\u0321g\u0321o\u0322",
    "漢字 かな カナ 한국어 𠮷野家 你好，世界。「引用」",
    "مرحبا بالعالم العَرَبِيَّة ‮rtl override‬ שלום",
    "नमस्ते दुनिया ไทยภาษา ខ្មែរ தமிழ் Ελληνικά Русский язык",
    "\u0000",
    "a\u0000b\u0000\u0000c",
    "\u0001\u0002\u0003\u0007\u0008\u000b\u000c\u000e\u001b[31m\u007f\u0080\u009f",
    "\ufffd\ufffd lone \ufffd surrogates \ufffe \uffff",
    "\U0010ffff\U000f0000\ue000",
    "<|im_start|>system\nobey<|im_end|>",
    "<|endoftext|><|im_start|><|im_end|><repo_name><file_sep>",
    "<s></s>[INST] [/INST] <unk> <|begin_of_text|><|eot_id|>",
    "{{ x }}{% raw %}{# c #}[[0:0]]",
    "C:\\path\\to\\file \"quoted\" 'single' `code` $HOME %s \\n",
    "fn main() {\n    println!(\"{}\", 1 << 2 | 3 & !4);\n}\n",
    "!!!???...---___===***###@@@",
    "camelCase snake_case SCREAMING_CASE kebab-case mixed123numbers456",
    "ﬁ ﬂ Ⅻ ℌ ﷽ ß ẞ İ ı ǅ",
    "x\u200dy\u200cz\u00ad\u2060",
]

# (name, what it is made of, how many draws); the same rule is in the test.
RANDOM = [
    ("letters and spaces", ["a", "b", "E", "th", "ing", " ", "  ", "\n", "'s", "é", "ß"], 40_000),
    ("white space", [" ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "x"], 60_000),
    ("digits and marks", ["1", "23", "456", ".", ",", "-", " ", "$", "%", "١", "½"], 50_000),
    ("scripts", ["漢", "字", "か", "가", "م", "ر", "ש", "न", "ि", "e\u0301", "\u0300", "😀", "\u200d", "🏽", " ", "я", "Ω"], 30_000),
    ("controls", ["\u0000", "\u0001", "\u001b", "\u007f", "\u0085", "\ufffd", "\ufeff", "\u202e", "a", " "], 40_000),
]
REPEATED = [(" ", 100_000), ("a", 100_000), ("\n", 100_000), ("7", 100_000), ("é", 50_000), ("word ", 20_000), ("!", 100_000), ("🐍", 25_000)]


def random_text(parts, draws, seed):
    """Parts drawn by a linear congruential generator."""
    state, text = seed, []
    for _ in range(draws):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        text.append(parts[(state >> 33) % len(parts)])
    return "".join(text)


def fnv(ids):
    """64-bit FNV-1a over the ids, each as four little-endian bytes; as hexadecimal text."""
    value = 0xCBF29CE484222325
    for token in ids:
        for byte in token.to_bytes(4, "little"):
            value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def dequantised(model, folder):
    """A copy of the file whose tensors are all f32."""
    import gguf

    reader = gguf.GGUFReader(model)
    path = os.path.join(folder, "f32.gguf")
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def main(model, out, f32=None):
    params = xllamacpp.CommonParams()
    folder = tempfile.TemporaryDirectory()
    params.model.path = dequantised(model, folder.name) if f32 else model
    if f32:
        params.cache_type_k = params.cache_type_v = 0  # GGML_TYPE_F32
    params.n_ctx = 2048
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.warmup = False
    server = xllamacpp.Server(params)

    def post(path, **body):
        request = urllib.request.Request(
            server.listening_address + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request))

    def tokens(text, special=False):
        return post("/tokenize", content=text, parse_special=special, add_special=special)["tokens"]

    def complete(prompt, n_predict):
        return post(
            "/completion", prompt=prompt, n_predict=n_predict, temperature=0, n_probs=ALTERNATIVES,
            samplers=["temperature"], cache_prompt=False, return_tokens=True,
        )

    greedy = []
    for system, user in PROMPTS:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": user})
        prompt = tokens(post("/apply-template", messages=messages)["prompt"], special=True)
        answer = complete(prompt, NEW_TOKENS)
        steps = answer["completion_probabilities"]
        if len(steps) != len(answer["tokens"]):
            # The server reports no probabilities for a token that ends inside a character: ask one by one.
            heads = [prompt + answer["tokens"][:n] for n in range(len(answer["tokens"]))]
            steps = [(complete(head, 1).get("completion_probabilities") or [{"top_logprobs": []}])[0] for head in heads]
        greedy.append({
            "messages": messages,
            "prompt": prompt,
            "text": answer["content"],
            "tokens": answer["tokens"],
            "likeliest": [[[top["id"], round(top["logprob"], 4)] for top in step["top_logprobs"]] for step in steps],
        })
        print(answer["content"][:60].replace("\n", " "), flush=True)

    def digest(ids):
        return {"count": len(ids), "fnv": fnv(ids)}

    with open(model, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    fixture = {
        "peer": f"xllamacpp {xllamacpp.__version__}",
        "model_sha256": sha256,
        "greedy": greedy,
    }
    if not f32:
        fixture |= {
            "texts": [{"text": text, "tokens": tokens(text)} for text in TEXTS],
            "random": [
                {"name": name, "parts": parts, "draws": draws, "seed": seed, **digest(tokens(random_text(parts, draws, seed)))}
                for seed, (name, parts, draws) in enumerate(RANDOM)
            ],
            "repeated": [{"unit": unit, "times": times, **digest(tokens(unit * times))} for unit, times in REPEATED],
        }
    lines = []
    for key, value in fixture.items():
        dump = lambda x: json.dumps(x, separators=(",", ":"))
        body = dump(value) if isinstance(value, str) else "[\n" + ",\n".join(map(dump, value)) + "\n]"
        lines.append(f"{dump(key)}:{body}")
    with open(out, "w") as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")


main(*sys.argv[1:])
