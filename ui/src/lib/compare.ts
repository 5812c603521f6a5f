import type { CellView, ComparedQuestion, RunView } from "../ipc";

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

/** Runs that differ in how many candidates a step has, fewest first. */
export type ScalingCurve = { name: string; runs: RunView[] };

/** What chooses among candidates: nothing to a run of one. */
const CHOOSERS = ["judge", "reward_model", "select"] as const;

/**
 * One curve for each way to choose, agent, model and so on. A run of one candidate begins every curve that it shares
 * the rest with, whatever its temperature. Empty if all runs have as many candidates.
 */
export function scaling(runs: RunView[]): ScalingCurve[] {
  const settings = runs.map((run) => run.settings);
  if (!differing(settings).includes("candidates")) return [];
  const rest = differing(settings).filter((key) => key !== "candidates" && key !== "temperature" && !CHOOSERS.some((chooser) => chooser === key));
  const shared = (run: RunView) => rest.map((key) => String(run.settings[key] ?? "–"));
  const way = ({ settings }: RunView) => [settings.judge, settings.reward_model, settings.select === "reward" ? null : settings.select].filter(Boolean).join(", ") || "votes, likelihood";
  const curves = new Map<string, ScalingCurve & { shared: string }>();
  for (const run of runs.filter((run) => run.settings.candidates > 1)) {
    const name = [...shared(run), way(run)].join(" · ");
    const curve = curves.get(name) ?? { name, runs: [], shared: shared(run).join() };
    curve.runs.push(run);
    curves.set(name, curve);
  }
  for (const run of runs.filter((run) => run.settings.candidates === 1)) {
    const begun = [...curves.values()].filter((curve) => curve.shared === shared(run).join());
    for (const curve of begun) curve.runs.push(run);
    const name = [...shared(run), "one candidate"].join(" · ");
    if (!begun.length) curves.set(name, { name, runs: [run], shared: "" });
  }
  return [...curves.values()].map(({ name, runs }) => ({ name, runs: runs.toSorted((a, b) => a.settings.candidates - b.settings.candidates) }));
}
