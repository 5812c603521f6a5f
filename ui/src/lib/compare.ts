import type { CellView, ComparedQuestion } from "../ipc";

export const VERDICTS = ["all", "differ", "only first", "only second", "both right", "both wrong", "open"] as const;
export type Verdict = (typeof VERDICTS)[number];

const right = (cell: CellView | null | undefined) => (cell?.em ?? 0) >= 0.999;

/** How the first run and another fared on a question. */
export function verdict(question: ComparedQuestion, other: number): Exclude<Verdict, "all" | "differ"> {
  const [a, b] = [question.cells[0], question.cells[other]];
  if (!a || !b) return "open";
  if (right(a)) return right(b) ? "both right" : "only first";
  return right(b) ? "only second" : "both wrong";
}

export function fits(question: ComparedQuestion, other: number, wanted: Verdict): boolean {
  if (wanted === "all") return true;
  const found = verdict(question, other);
  return wanted === "differ" ? found === "only first" || found === "only second" : found === wanted;
}

/** A p value as people read it. */
export function chance(p: number | null): string {
  if (p === null) return "–";
  return p < 0.001 ? "p < 0.001" : `p = ${p.toFixed(p < 0.1 ? 3 : 2)}`;
}

/** Names of settings whose values differ between the runs. */
export function differing<T extends object>(settings: T[]): (keyof T)[] {
  const [first] = settings;
  if (!first) return [];
  return (Object.keys(first) as (keyof T)[]).filter((key) => settings.some((other) => other[key] !== first[key]));
}
