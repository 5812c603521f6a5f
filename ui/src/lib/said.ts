import type { CandidateView } from "../ipc";

export type Kind = "search" | "answer" | "malformed";

/** What a candidate does. A search may carry the answer predicted so far (Re²Search): it is still a search. */
export function kindOf(candidate: CandidateView): Kind {
  return candidate.malformed !== null ? "malformed" : candidate.query !== null ? "search" : "answer";
}

export function said(candidate: CandidateView): string {
  return candidate.malformed ?? candidate.query ?? candidate.answer ?? "";
}
