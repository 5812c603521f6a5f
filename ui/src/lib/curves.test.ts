import { describe, expect, test } from "vitest";
import type { Overview, TrainStep } from "../ipc";
import { columns, latest, METRICS, present, smoothed } from "./curves";
import { short } from "./format";
import { defaultTraining, missing, nextName, trainable, trainCommand } from "./training";

const step = (n: number, loss: number, more: Partial<TrainStep> = {}): TrainStep => ({ step: n, steps: 9, loss, learning_rate: 1e-4, tokens_per_second: 100, grad_norm: 1, ...more });
const [loss] = METRICS;

describe("curves", () => {
  test("a constant stays itself however much it is smoothed, and a gap stays a gap", () => {
    expect(smoothed([2, 2, null, 2], 0.9).map((v) => v?.toFixed(6))).toEqual(["2.000000", "2.000000", undefined, "2.000000"]);
    expect(smoothed([1, 3], 0)).toEqual([1, 3]);
    expect(smoothed([1, 3], 0.5)[1]).toBeCloseTo(7 / 3);
  });
  test("trainings of different lengths share the axis of steps", () => {
    const a = { name: "a", steps: [step(1, 3), step(2, 2, { eval: { step: 2, loss: 2.5, n: 7 } })] };
    const b = { name: "b", steps: [step(1, 0)] };
    expect(loss && columns([a, b], loss, 0, true)).toEqual([[1, 2], [3, 2], [3, 2], [null, 2.5], [null, null], [null, null], [null, null]]);
    expect(present([a]).map(({ label }) => label)).toEqual(["Loss", "Gradient norm", "Learning rate", "Speed"]);
    expect(present([{ name: "d", steps: [step(1, 1, { margin: 0, accuracy: 0.5 })] }])).toEqual(METRICS);
    expect([latest([null, 4, null], 2), latest([null, 4], 0)]).toEqual([4, null]);
  });
  test("numbers of any size are short", () => {
    expect([0, 5e-4, 0.000125, 1.23456, 250, 1e7, -2e-5, null].map(short)).toEqual(["0", "5e−4", "1.25e−4", "1.23", "250", "1e7", "−2e−5", "–"]);
  });
});

describe("the form of a training", () => {
  const overview = { models: [{ name: "small", kind: "language" }, { name: "far", kind: "endpoint" }], question_sets: [{ name: "w-test" }, { name: "w-train" }], runs: [] } as unknown as Overview;
  test("begins with gold evidence of a set that is for training", () => {
    const request = defaultTraining(overview, ["sft-1"]);
    expect([request.base, request.expert, request.out, missing(request)]).toEqual(["small", ["w-train"], "sft-2", null]);
    expect([missing({ ...request, expert: [] }), missing({ ...request, agents: [] }), missing({ ...request, out: "a b" })].every((text) => text !== null)).toBe(true);
    expect(nextName("dpo", [])).toBe("dpo-1");
  });
  test("offers encoders as the base of a reward model only", () => {
    const models = [...overview.models, { name: "mini", kind: "encoder", architecture: "bert" }, { name: "made", kind: "reward", architecture: "bert" }, { name: "head", kind: "reward", architecture: "llama" }];
    const bases = (method: string) => trainable({ ...overview, models } as Overview, method).map(({ name }) => name);
    expect([bases("sft"), bases("dpo"), bases("prm")]).toEqual([["small"], ["small"], ["small", "mini", "made", "head"]]);
  });
  test("equals a command that says the method's own settings only", () => {
    const request = { ...defaultTraining(overview, []), limit: 5, learning_rate: 1e-3, files: ["/a b.jsonl"] };
    const command = trainCommand(request);
    expect(command).toContain("rag-gym train sft --data '/a b.jsonl' --expert w-train --agents search-o1 --limit 5 --k 3 --base small --out sft-1 --rank 16 --alpha 32 --targets q,k,v --lr 0.001");
    expect(command).not.toContain("--beta");
    expect(trainCommand({ ...request, any_outcome: true })).toBe(command);
    expect(trainCommand({ ...request, method: "prm", readings: 9, clozes: 2, counterfactuals: 1 })).toMatch(/--limit 5 --counterfactuals 1 --k 3/);
    expect(trainCommand({ ...request, method: "dpo", expert: [], runs: ["r1", "r2"], judge: "human", any_outcome: true })).toMatch(/dpo --from r1,r2 --judge human --any-outcome --data .* --beta 0.1/);
  });
});
