/** Speed and time left of something that reports its amount now and then. */
export type Pace = { perSecond: number; leftMs: number | null };

/** Remembers the last seconds of (time, amount) and says how fast it grows. */
export class Meter {
  #seen: [number, number][] = [];

  /** `now` in milliseconds. A falling amount is a new count. */
  take(now: number, done: number): void {
    const last = this.#seen.at(-1);
    if (last && done < last[1]) this.#seen = [];
    this.#seen.push([now, done]);
    while (this.#seen.length > 2 && now - (this.#seen[0]?.[0] ?? now) > 8000) this.#seen.shift();
  }

  pace(total: number): Pace | null {
    const [first, last] = [this.#seen[0], this.#seen.at(-1)];
    if (!first || !last || last[0] - first[0] < 500) return null;
    const perSecond = ((last[1] - first[1]) / (last[0] - first[0])) * 1000;
    return { perSecond, leftMs: perSecond > 0 && total > 0 ? Math.max(0, ((total - last[1]) / perSecond) * 1000) : null };
  }
}
