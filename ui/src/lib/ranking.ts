/** A person's verdict while it is made: candidates named best first, and those to avoid. */
export type Ranking = { best: number[]; worst: number[] };

export const none: Ranking = { best: [], worst: [] };

/** Names a candidate; one that has that name already loses it. */
export function name(ranking: Ranking, candidate: number, how: keyof Ranking): Ranking {
  const without = { best: ranking.best.filter((other) => other !== candidate), worst: ranking.worst.filter((other) => other !== candidate) };
  return ranking[how].includes(candidate) ? without : { ...without, [how]: [...without[how], candidate] };
}

export function isEmpty({ best, worst }: Ranking): boolean {
  return best.length + worst.length === 0;
}

/** What a candidate's badge says. */
export function label({ best, worst }: Ranking, candidate: number): string | null {
  if (worst.includes(candidate)) return "avoid";
  const rank = best.indexOf(candidate) + 1;
  return rank === 0 ? null : rank === 1 ? "best" : `${rank}${rank === 2 ? "nd" : rank === 3 ? "rd" : "th"}`;
}
