import { describe, expect, test } from "vitest";
import type { CandidateView, PassageView } from "../ipc";
import { idle, support, take } from "./live";

const candidate = (over: Partial<CandidateView>): CandidateView => ({
  text: "",
  reasoning: null,
  query: null,
  answer: null,
  malformed: null,
  logprob: 0,
  token_logprobs: [],
  reward: null,
  multiplicity: 1,
  redundant: false,
  ...over,
});
const passage = (id: string, text: string, gold = false): PassageView => ({
  id,
  title: id,
  text: [{ text, marked: false }],
  score: 1,
  rank: 1,
  gold,
});

describe("events of a question", () => {
  test("tokens are appended to their own candidate of the last step", () => {
    const live = idle();
    take(live, { kind: "step_started", step_idx: 0, prompt: [], dropped: [], candidates: 2 });
    take(live, { kind: "token", sample_idx: 0, text: "a" });
    take(live, { kind: "token", sample_idx: 1, text: "x" });
    take(live, { kind: "token", sample_idx: 0, text: "b" });
    expect(live.steps[0]?.streams).toEqual(["ab", "x"]);
    expect(live.phase).toBe("running");
  });

  test("candidates, passages and the finding settle on the step", () => {
    const live = idle();
    take(live, { kind: "step_started", step_idx: 0, prompt: [], dropped: [], candidates: 1 });
    take(live, { kind: "candidates", candidates: [candidate({ query: "who" })], chosen: 0 });
    take(live, { kind: "retrieved", query: "who", passages: [passage("p", "text")] });
    take(live, { kind: "reader_token", text: "It" });
    take(live, { kind: "finding", finding: "It was her." });
    expect(live.steps[0]).toMatchObject({ chosen: 0, query: "who", reader: "It", finding: "It was her." });
  });

  test("a token before any step changes nothing", () => {
    const live = idle();
    take(live, { kind: "token", sample_idx: 0, text: "a" });
    expect(live.steps).toEqual([]);
  });

  test("a cancelled question keeps its steps", () => {
    const live = idle();
    take(live, { kind: "step_started", step_idx: 0, prompt: [], dropped: [], candidates: 1 });
    take(live, { kind: "cancelled" });
    expect([live.phase, live.steps.length]).toEqual(["cancelled", 1]);
  });
});

describe("the passages that speak for an answer", () => {
  const live = idle();
  take(live, { kind: "step_started", step_idx: 0, prompt: [], dropped: [], candidates: 1 });
  take(live, { kind: "retrieved", query: "q", passages: [passage("a", "nothing"), passage("b", "in Oslo"), passage("c", "x", true)] });

  test("gold first, then those that hold its words", () => {
    expect(support(live.steps, "oslo").map((p) => p.id)).toEqual(["c", "b"]);
  });
});
