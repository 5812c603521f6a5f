import { expect, test } from "vitest";
import type { EstimateView, MachineReport } from "../ipc";
import { estimateOf, peak, room, speed } from "./machine";

const estimate: EstimateView = {
  model: "small",
  prefill_tokens_per_second: 1834.2,
  decode_tokens_per_second: 9.46,
  candidates_tokens_per_second: 412,
  memory_bytes: 240e6,
  fits: true,
};
const report: MachineReport = {
  machine: { processor: "P", instructions: "avx2", threads: 2, f32_gflops: 100, int16_gops: 400, read_gb_per_second: 20 },
  memory_bytes: 8e9,
  estimates: [estimate],
};

test("a model has the estimate of its name, and an endpoint none", () => {
  expect(estimateOf(report, "small")).toBe(estimate);
  expect(estimateOf(report, "server")).toBeNull();
  expect(estimateOf(null, "small")).toBeNull();
});

test("estimates have two digits and their unit", () => {
  expect([1834.2, 9.46, 412].map(speed)).toEqual(["about 1\u202f800", "about 9.5", "about 410"]);
});

test("a peak has its unit", () => {
  expect([peak(1234.5, "GOP/s"), peak(null, "GOP/s")]).toEqual(["1\u202f235 GOP/s", "–"]);
});

test("room is told in words", () => {
  expect(room(estimate, 8e9)).toBe("fits into 8.00 GB");
  expect(room({ ...estimate, fits: false }, 8e9)).toBe("does not fit into 8.00 GB");
  expect(room({ ...estimate, fits: null }, 0)).toBe("this system does not tell its memory");
});
