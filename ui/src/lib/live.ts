import type { AskEvent, CandidateView, EpisodeView, ErrorView, MessageView, PassageView, StepView } from "../ipc";

/** A step while it happens, and after. */
export type LiveStep = {
  stepIdx: number;
  prompt: MessageView[];
  dropped: string[];
  /** Text of each candidate as it streams. */
  streams: string[];
  candidates: CandidateView[];
  chosen: number | null;
  query: string | null;
  passages: PassageView[];
  reader: string;
  finding: string | null;
  done: StepView | null;
};

export type Live = {
  phase: "idle" | "loading" | "running" | "finished" | "cancelled" | "failed";
  model: string | null;
  steps: LiveStep[];
  episode: EpisodeView | null;
  error: ErrorView | null;
};

export function idle(): Live {
  return { phase: "idle", model: null, steps: [], episode: null, error: null };
}

/** Takes one event in; changes `live` in place, so that only what changed is drawn. */
export function take(live: Live, event: AskEvent): void {
  const step = live.steps.at(-1);
  switch (event.kind) {
    case "loading":
      live.phase = "loading";
      live.model = event.model;
      return;
    case "step_started":
      live.phase = "running";
      live.steps.push({
        stepIdx: event.step_idx,
        prompt: event.prompt,
        dropped: event.dropped,
        streams: Array.from({ length: event.candidates }, () => ""),
        candidates: [],
        chosen: null,
        query: null,
        passages: [],
        reader: "",
        finding: null,
        done: null,
      });
      return;
    case "token":
      if (step) step.streams[event.sample_idx] = (step.streams[event.sample_idx] ?? "") + event.text;
      return;
    case "candidates":
      if (step) {
        step.candidates = event.candidates;
        step.chosen = event.chosen;
      }
      return;
    case "retrieved":
      if (step) {
        step.query = event.query;
        step.passages = event.passages;
      }
      return;
    case "reader_token":
      if (step) step.reader += event.text;
      return;
    case "finding":
      if (step) step.finding = event.finding;
      return;
    case "step_finished": {
      const settled = liveStep(event.step);
      const at = live.steps.findIndex((step) => step.stepIdx === settled.stepIdx);
      if (at < 0) live.steps.push(settled);
      else live.steps[at] = settled;
      return;
    }
    case "finished":
      live.phase = "finished";
      live.episode = event.episode;
      live.steps = event.episode.steps.map(liveStep);
      return;
    case "cancelled":
      live.phase = "cancelled";
      return;
    case "failed":
      live.phase = "failed";
      live.error = event.error;
      return;
  }
}

/** A stored step in the shape of a live one, so that both are drawn by the same parts. */
export function liveStep(step: StepView): LiveStep {
  return {
    stepIdx: step.step_idx,
    prompt: step.prompt,
    dropped: step.dropped,
    streams: step.candidates.map((candidate) => candidate.text),
    candidates: step.candidates,
    chosen: step.chosen,
    query: step.candidates[step.chosen]?.query ?? null,
    passages: step.passages,
    reader: "",
    finding: step.finding,
    done: step,
  };
}

/** Every passage of the episode once, in the order found. */
export function evidence(steps: LiveStep[]): PassageView[] {
  const seen = new Map<string, PassageView>();
  for (const passage of steps.flatMap((step) => step.passages)) {
    if (!seen.has(passage.id)) seen.set(passage.id, passage);
  }
  return [...seen.values()];
}

/** An episode that the store holds, as if it had just been answered. */
export function told(episode: EpisodeView): Live {
  return { ...idle(), phase: "finished", steps: episode.steps.map(liveStep), episode };
}

/** How many candidates were sampled, equal ones counted each. */
export function sampled(step: LiveStep): number {
  return step.candidates.length ? step.candidates.reduce((sum, candidate) => sum + candidate.multiplicity, 0) : step.streams.length;
}
