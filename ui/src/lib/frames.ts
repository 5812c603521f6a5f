import type { EpisodeView } from "../ipc";

/** What Present shows one after the other: each Space unfolds the next. */
export type Frame = { kind: "question" } | { kind: "candidates" | "taken" | "passages" | "finding"; step: number } | { kind: "answer" } | { kind: "support" };

/** The question, then of each step its candidates, the one taken, and what it found; then the answer. */
export function frames(episode: EpisodeView): Frame[] {
  const steps = episode.steps.flatMap((step, i): Frame[] => [
    { kind: "candidates", step: i },
    ...(step.candidates.length > 1 ? [{ kind: "taken" as const, step: i }] : []),
    ...(step.passages.length ? [{ kind: "passages" as const, step: i }] : []),
    ...(step.finding ? [{ kind: "finding" as const, step: i }] : []),
  ]);
  return [{ kind: "question" }, ...steps, { kind: "answer" }, { kind: "support" }];
}
