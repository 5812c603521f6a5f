/** How the figures of a machine and the estimates of its models are put. */
import type { EstimateView, MachineReport } from "../ipc";
import { bytes, count } from "./format";

/** `null` until the machine is measured, and for what is no file here. */
export function estimateOf(report: MachineReport | null, model: string): EstimateView | null {
  return report?.estimates.find((estimate) => estimate.model === model) ?? null;
}

type Maybe = number | null;

/** A measured peak with its unit. */
export function peak(value: Maybe, unit: string): string {
  return value === null ? "–" : `${count(value)} ${unit}`;
}

/** Two digits, since it is an estimate: 1834.2 is "about 1 800". */
export function speed(tokensPerSecond: Maybe): string {
  if (tokensPerSecond === null) return "–";
  const rounded = Number(tokensPerSecond.toPrecision(2));
  return `about ${rounded < 10 ? rounded : count(rounded)}`;
}

/** Whether a model finds room, in words. */
export function room(estimate: EstimateView, memory: Maybe): string {
  if (estimate.fits === null) return "this system does not tell its memory";
  return `${estimate.fits ? "fits" : "does not fit"} into ${bytes(memory)}`;
}
