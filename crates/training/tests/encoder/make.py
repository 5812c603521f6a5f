"""Writes numbers.json: what transformers computes with all-MiniLM-L6-v2, for tests/cross_encoder.rs.

    python make.py MODEL_FOLDER        (torch, transformers)
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertModel

folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
SENTENCES = [
    "What is the highest mountain of Austria?",
    "Zdravljica is Slovenia's national anthem; the currency there is the euro.",
    "São Tomé: 1,001 km² — naïve façade",
]
STATE = (
    "Question: What is the currency of the country whose national anthem is \"Zdravljica\"?\n"
    "Search: country whose national anthem is Zdravljica\nFound: Slovenia\n"
)
ACTIONS = ["Search: currency of Slovenia", "Answer: Slovenia", "Search: Zdravljica"]


def ids(text):
    return tokenizer(text, add_special_tokens=False, padding=False, truncation=False)["input_ids"]


def few(numbers):
    return [round(float(x), 6) for x in numbers[:8]]


begin, end = tokenizer.cls_token_id, tokenizer.sep_token_id
embeddings, pairs = [], []
with torch.no_grad():
    for text in SENTENCES:
        last = model(torch.tensor([[begin, *ids(text), end]])).last_hidden_state[0]
        embeddings.append(few(last.mean(0)))
    for action in ACTIONS:
        state, action = [begin, *ids(STATE), end], [*ids(action), end]
        n, rows = len(state), len(state) + len(action)
        # The state's rows do not see the action.
        mask = torch.zeros(1, 1, rows, rows)
        mask[:, :, :n, n:] = torch.finfo(torch.float32).min
        kinds = torch.tensor([[0] * n + [1] * len(action)])
        last = model(torch.tensor([state + action]), attention_mask=mask, token_type_ids=kinds).last_hidden_state[0]
        pairs.append(few(last[n:].mean(0)))
numbers = {"sentences": SENTENCES, "embeddings": embeddings, "state": STATE, "actions": ACTIONS, "pairs": pairs}
Path(__file__).with_name("numbers.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
