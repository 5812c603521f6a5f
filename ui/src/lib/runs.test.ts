import { describe, expect, test } from "vitest";
import type { ComparedQuestion, EpisodeView, RunView, StepView } from "../ipc";
import { chance, differing, fits, scaling, verdict } from "./compare";
import { defaultSettings } from "./command";
import { ranked } from "./find";
import { frames } from "./frames";
import { Meter } from "./pace";
import { place } from "./reward";
import { filtered, ordered } from "./runs";
import { windowed } from "./windowed";

const run = (id: string, f1: number | null, over: Partial<RunView> = {}): RunView => ({
  id, name: id, status: "finished", question_set: "dev", settings: defaultSettings("factbook", "small"), questions: 10, finished: 10, failed: 0,
  em: null, f1: f1 === null ? null : { mean: f1, low: f1, high: f1 }, searches_mean: 1, malformed_rate: 0, took_ms: 1000, created_at: "", error: null, ...over,
});

describe("the table of runs", () => {
  const runs = [run("a", 0.2), run("b", null), run("c", 0.5, { status: "stopped", settings: { ...defaultSettings("factbook", "small"), agent: "react" } })];
  const ids = (found: RunView[]) => found.map(({ id }) => id).join("");

  test("is filtered by words and by conditions on columns", () => {
    expect(ids(filtered(runs, "stopped"))).toBe("c");
    expect(ids(filtered(runs, "agent:react dev"))).toBe("c");
    expect(ids(filtered(runs, "f1>20"))).toBe("c");
    expect(ids(filtered(runs, "f1>=20"))).toBe("ac");
    expect(ids(filtered(runs, "n<5"))).toBe("");
    expect(ids(filtered(runs, "nowhere:x"))).toBe("");
  });

  test("is sorted with what is missing last, both ways", () => {
    expect([ids(ordered(runs, { by: "f1", down: true })), ids(ordered(runs, { by: "f1", down: false }))]).toEqual(["cab", "acb"]);
    expect(ids(ordered(runs, { by: "agent", down: false }))).toBe("cab");
  });
});

test("of 5000 rows only those in sight are drawn", () => {
  const slice = windowed(5000, 50, 100_000, 500, 5);
  expect(slice).toEqual({ from: 1995, to: 2015, above: 99_750, below: 149_250 });
  expect(slice.above + slice.below + (slice.to - slice.from) * 50).toBe(5000 * 50);
  expect(windowed(0, 50, 0, 500)).toMatchObject({ from: 0, to: 0, below: 0 });
  expect(windowed(3, 50, 9000, 500)).toMatchObject({ to: 3 });
});

test("speed and time left come from the last seconds", () => {
  const meter = new Meter();
  meter.take(0, 0);
  expect(meter.pace(100)).toBeNull();
  meter.take(1000, 10);
  expect(meter.pace(100)).toEqual({ perSecond: 10, leftMs: 9000 });
  meter.take(2000, 5);
  expect(meter.pace(100)).toBeNull();
});

test("one scale holds every reward", () => {
  expect([place(0), place(0.5), place(1)]).toEqual([0, 0.5, 1]);
  expect(place(4)).toBeGreaterThan(0.9);
  expect(place(-4)).toBeLessThan(0.1);
});

describe("a comparison", () => {
  const question = (a: number | null, b: number | null): ComparedQuestion => ({
    question_id: "q", question: "", gold_answer: "",
    cells: [a, b].map((em) => (em === null ? null : { answer: "", em, f1: em, searches: 0 })),
  });

  test("says who was right", () => {
    expect([question(1, 0), question(0, 1), question(1, 1), question(0, 0), question(1, null)].map((q) => verdict(q, 1))).toEqual(["only first", "only second", "both right", "both wrong", "open"]);
    expect(fits(question(1, 0), 1, "differ") && !fits(question(1, 1), 1, "differ")).toBe(true);
  });

  test("names the settings that differ", () => {
    const settings = defaultSettings("factbook", "small");
    expect(differing([settings, { ...settings, agent: "rag", seed: 3 }])).toEqual(["agent", "seed"]);
    expect([chance(0.0001), chance(0.031), chance(0.5), chance(null)]).toEqual(["p < 0.001", "p = 0.031", "p = 0.50", "–"]);
  });

  test("draws a curve for each way to choose, begun by the run that had nothing to choose", () => {
    const n = (id: string, candidates: number, over: object = {}) => run(id, 0.5, { settings: { ...defaultSettings("factbook", "small"), candidates, temperature: candidates > 1 ? 1 : 0, ...over } });
    const spelled = (runs: RunView[]) => scaling(runs).map(({ name, runs }) => `${name}: ${ids(runs)}`);
    const ids = (runs: RunView[]) => runs.map(({ id }) => id).join("");
    expect(spelled([n("a", 5), n("b", 5)])).toEqual([]);
    const runs = [n("a", 10, { judge: "evidence" }), n("b", 1), n("c", 5, { judge: "evidence" }), n("d", 5, { reward_model: "prm", select: "prior" })];
    expect(spelled(runs)).toEqual(["evidence: bca", "prm, prior: bd"]);
    expect(spelled([...runs, n("e", 1, { agent: "rag" })])).toContain("rag · one candidate: e");
  });
});

test("what begins with the query is found first, scattered letters last", () => {
  const items = ["Go to Runs", "Runs of May", "r u n n e r s", "Larger text"];
  expect(ranked(items, "runs", (item) => item)).toEqual(["Runs of May", "Go to Runs", "r u n n e r s"]);
  expect(ranked(items, "", (item) => item)).toEqual(items);
});

test("a talk unfolds each step, and ends with the answer and its support", () => {
  const step = { candidates: [{}, {}], passages: [{}], finding: null } as unknown as StepView;
  const kinds = frames({ steps: [step, { ...step, candidates: [{}] as StepView["candidates"], passages: [] }] } as unknown as EpisodeView).map(({ kind }) => kind);
  expect(kinds).toEqual(["question", "candidates", "taken", "passages", "candidates", "answer", "support"]);
});
