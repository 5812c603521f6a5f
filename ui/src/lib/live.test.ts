import { describe, expect, test } from "vitest";
import type { CandidateView, EpisodeView, PassageView } from "../ipc";
import { evidence, idle, sampled, take, told } from "./live";
import { isVerdict, marked, support } from "./support";

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

describe("many candidates", () => {
  test("merged ones still count as often as they were sampled", () => {
    const live = idle();
    take(live, { kind: "step_started", step_idx: 0, prompt: [], dropped: [], candidates: 3 });
    expect(sampled(live.steps[0]!)).toBe(3);
    take(live, { kind: "candidates", candidates: [candidate({ multiplicity: 2 }), candidate({})], chosen: 0 });
    expect(sampled(live.steps[0]!)).toBe(3);
  });
});

describe("the passages that support an answer", () => {
  const passages = [passage("a", "nothing"), passage("b", "in Oslo, Norway"), passage("c", "Oslo again", true), passage("d", "Oslofjord")];

  test("only those that hold its words, gold ones first", () => {
    expect(support(passages, "oslo.").map(({ passage }) => passage.id)).toEqual(["c", "b"]);
  });

  test("none is none", () => {
    expect(support(passages, "Bergen")).toEqual([]);
    expect(support(passages, null)).toEqual([]);
    expect(support([passage("n", "no one knows")], "No")).toEqual([]);
    expect([isVerdict("Yes."), isVerdict("Yes man")]).toEqual([true, false]);
  });

  test("marks are whole words in any case, and the text stays whole", () => {
    const parts = marked("Vienna and VIENNA, not Viennas (a.b)", "vienna");
    expect(parts.filter((part) => part.marked).map((part) => part.text)).toEqual(["Vienna", "VIENNA"]);
    expect(parts.map((part) => part.text).join("")).toBe("Vienna and VIENNA, not Viennas (a.b)");
    expect(marked("a.b axb", "a.b").filter((part) => part.marked)).toHaveLength(1);
  });

  test("a passage found twice is listed once", () => {
    const live = idle();
    for (const step_idx of [0, 1]) {
      take(live, { kind: "step_started", step_idx, prompt: [], dropped: [], candidates: 1 });
      take(live, { kind: "retrieved", query: "q", passages: [passage("a", "x")] });
    }
    expect(evidence(live.steps)).toHaveLength(1);
  });
});

test("a stored episode looks as if it had just been answered", () => {
  const episode: EpisodeView = {
    run: "r", question_id: "q", question: "?", options: [], gold: { answers: [], titles: [], sub_questions: [] }, status: "finished", answer: "x",
    termination: "answered", em: null, f1: null, tokens: { prompt: 0, cached: 0, generated: 0 }, took_ms: 1,
    steps: [{ step_idx: 0, truncated: false, prompt: [], dropped: [], candidates: [candidate({ query: "who", text: "t" })], chosen: 0, judge: null, rationale: null, passages: [], finding: null, tokens: { prompt: 0, cached: 0, generated: 0 } }],
  };
  expect(told(episode)).toMatchObject({ phase: "finished", steps: [{ query: "who", streams: ["t"] }] });
});
