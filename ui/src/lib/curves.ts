import type { EvalPoint, TrainStep } from "../ipc";

/** The steps of one training, from its first on. */
export type Curve = { name: string; steps: TrainStep[] };

export type Metric = {
  label: string;
  unit: string;
  of: (step: TrainStep) => number | null | undefined;
  held?: (point: EvalPoint) => number | null | undefined;
  /** It is never below zero, so that a logarithmic axis can show it. */
  positive: boolean;
};

export const METRICS: Metric[] = [
  { label: "Loss", unit: "nats", of: (s) => s.loss, held: (e) => e.loss, positive: true },
  { label: "Reward margin", unit: "chosen − rejected", of: (s) => s.margin, held: (e) => e.margin, positive: false },
  { label: "Pair accuracy", unit: "share of pairs", of: (s) => s.accuracy, held: (e) => e.accuracy, positive: false },
  { label: "Gradient norm", unit: "before clipping", of: (s) => s.grad_norm, positive: true },
  { label: "Learning rate", unit: "per step", of: (s) => s.learning_rate, positive: true },
  { label: "Speed", unit: "tokens/s", of: (s) => s.tokens_per_second, positive: true },
];

/** Those that any of the curves has. */
export function present(curves: Curve[]): Metric[] {
  return METRICS.filter((metric) => curves.some(({ steps }) => steps.some((step) => metric.of(step) != null)));
}

/** Exponential moving average that is not drawn to a beginning at zero; weight 0 changes nothing. */
export function smoothed(values: (number | null)[], weight: number): (number | null)[] {
  let [sum, mass] = [0, 0];
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}

/** Columns for a chart: the step numbers, then of every curve its values, those smoothed, its evaluations. */
export function columns(curves: Curve[], metric: Metric, weight: number, log: boolean): (number | null)[][] {
  const n = Math.max(0, ...curves.map(({ steps }) => steps.at(-1)?.step ?? 0));
  const shown = (value: number | null | undefined) => (value == null || (log && value <= 0) ? null : value);
  const table: (number | null)[][] = [Array.from({ length: n }, (_, i) => i + 1)];
  for (const { steps } of curves) {
    const [values, held] = [new Array<number | null>(n).fill(null), new Array<number | null>(n).fill(null)];
    for (const step of steps) {
      values[step.step - 1] = shown(metric.of(step));
      if (step.eval && metric.held) held[step.step - 1] = shown(metric.held(step.eval));
    }
    table.push(values, smoothed(values, weight), held);
  }
  return table;
}

/** The last value at or before a place. */
export function latest(values: (number | null)[], at: number): number | null {
  for (let i = Math.min(at, values.length - 1); i >= 0; i -= 1) {
    const value = values[i];
    if (value != null) return value;
  }
  return null;
}
