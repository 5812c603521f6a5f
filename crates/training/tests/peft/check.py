"""Loads adapters that this program wrote with PEFT, and compares what they say.

    python make.py && cargo run -p training --example peft_peer -- /tmp/peer && python check.py /tmp/peer
"""
import json
import pathlib
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

here, folder = pathlib.Path(__file__).parent, pathlib.Path(sys.argv[1])
said = json.loads((folder / "said.json").read_text())
policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(here / "hf"), folder / "policy").eval()
reward = PeftModel.from_pretrained(
    AutoModelForSequenceClassification.from_pretrained(here / "hf", num_labels=1), folder / "reward").eval()
worst = 0.0
for completion, ours, our_reward in zip(said["completions"], said["log_probabilities"], said["rewards"]):
    ids = torch.tensor([said["prompt"] + completion])
    with torch.no_grad():
        logits = torch.log_softmax(policy(input_ids=ids).logits[:, len(said["prompt"]) - 1:-1], -1)
        theirs = logits.gather(-1, ids[:, len(said["prompt"]):, None]).sum().item()
        their_reward = reward(input_ids=ids).logits.item()
    print(json.dumps({"log_probability": [ours, theirs], "reward": [our_reward, their_reward]}))
    worst = max(worst, abs(ours - theirs), abs(our_reward - their_reward))
print(json.dumps({"worst_difference": worst}))
sys.exit(worst > 1e-3)
