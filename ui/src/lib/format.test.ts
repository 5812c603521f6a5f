import { expect, test } from "vitest";
import type { RunRequest } from "../ipc";
import { commandLine, defaultSettings } from "./command";
import { bytes, count, duration, interval, magnitude, signed } from "./format";
import { above, href, parseRoute } from "./route";

test("an interval is a percentage with its ends", () => {
  expect(interval({ mean: 0.412, low: 0.35, high: 0.479 })).toBe("41.2 (35.0–47.9)");
  expect(interval(null)).toBe("–");
});

test("numbers carry their units", () => {
  expect([bytes(0), bytes(1500), bytes(91_700_000)]).toEqual(["0 B", "1.50 kB", "91.7 MB"]);
  expect([duration(12), duration(4200), duration(125_000), duration(3_720_000)]).toEqual(["12 ms", "4.2 s", "2 min 5 s", "1 h 2 min"]);
  expect([magnitude(134_515_008), count(1234567)]).toEqual(["135 M", "1\u202f234\u202f567"]);
  expect([signed(0.5), signed(-0.5)]).toEqual(["+0.50", "−0.50"]);
});

test("the command line quotes what a shell would split", () => {
  const request: RunRequest = {
    name: "it's a try",
    questions: "factbook-dev",
    limit: 20,
    settings: defaultSettings("factbook", "smollm2-135m"),
  };
  const line = commandLine(request);
  expect(line).toContain("rag-gym run --questions factbook-dev --corpus factbook --agent search-o1 --model smollm2-135m");
  expect(line).toContain("--limit 20");
  expect(line).toContain(`--name 'it'\\''s a try'`);
  expect(line).not.toContain("--judge");
});

test("routes survive names with slashes", () => {
  expect(parseRoute(href("runs", "a/b", "q 1"))).toEqual({ place: "runs", rest: ["a/b", "q 1"] });
  expect(parseRoute(href("compare", "a", "b", "c"))).toEqual({ place: "compare", rest: ["a", "b", "c"] });
  expect(parseRoute("#/nowhere")).toEqual({ place: "home", rest: [] });
  expect(parseRoute("#/present/only-a-run")).toEqual({ place: "home", rest: ["only-a-run"].slice(1) });
});

test("Esc leads one level up", () => {
  const up = (hash: string) => above(parseRoute(hash));
  expect([up("#/runs/a/q"), up("#/runs/a"), up("#/runs"), up("#/compare/a/b"), up("#/present/a/q")]).toEqual(["#/runs/a", "#/runs", null, "#/compare", "#/runs/a/q"]);
});
