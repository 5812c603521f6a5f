import type { RunView } from "../ipc";

/** The columns of the table of runs, as sorting and filtering see them. */
export const COLUMNS = {
  status: (run) => run.status,
  name: (run) => run.name,
  agent: (run) => run.settings.agent,
  model: (run) => run.settings.model,
  set: (run) => run.question_set ?? "",
  corpus: (run) => run.settings.corpus,
  n: (run) => run.finished,
  em: (run) => run.em && (run.em.mean ?? 0) * 100,
  f1: (run) => run.f1 && (run.f1.mean ?? 0) * 100,
  searches: (run) => run.searches_mean,
  malformed: (run) => run.malformed_rate === null ? null : run.malformed_rate * 100,
  seconds: (run) => run.took_ms === null ? null : run.took_ms / 1000,
  candidates: (run) => run.settings.candidates,
  date: (run) => run.created_at,
} as const satisfies Record<string, (run: RunView) => string | number | null>;

export type Column = keyof typeof COLUMNS;
export type Order = { by: Column; down: boolean };

/** Words that must occur, and conditions on columns: `agent:react`, `f1>20`, `n<=50`. */
export function filtered(runs: RunView[], filter: string): RunView[] {
  const conditions = filter.toLowerCase().split(/\s+/).filter(Boolean).map(condition);
  return runs.filter((run) => conditions.every((holds) => holds(run)));
}

function condition(word: string): (run: RunView) => boolean {
  const [, name, sign, wanted] = /^([a-z0-9]+)(:|<=|>=|<|>|=)(.+)$/.exec(word) ?? [];
  if (!name || !sign || !wanted || !(name in COLUMNS)) {
    return (run) => [run.status, run.name, run.settings.agent, run.settings.model, run.settings.corpus, run.question_set].join(" ").toLowerCase().includes(word);
  }
  const value = COLUMNS[name as Column];
  const bound = Number(wanted);
  return (run) => {
    const found = value(run);
    if (typeof found !== "number" || Number.isNaN(bound)) return String(found ?? "").toLowerCase().includes(wanted);
    switch (sign) {
      case "<": return found < bound;
      case ">": return found > bound;
      case "<=": return found <= bound;
      case ">=": return found >= bound;
      default: return Math.abs(found - bound) < 0.05;
    }
  };
}

/** Missing values last, whichever way it goes. */
export function ordered(runs: RunView[], { by, down }: Order): RunView[] {
  const value = COLUMNS[by];
  const sign = down ? -1 : 1;
  return runs.toSorted((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return Number(x === null) - Number(y === null);
    return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
  });
}
