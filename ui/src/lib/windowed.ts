/** Which of many rows of one height are in sight, with a few more on either side. */
export type Slice = { from: number; to: number; above: number; below: number };

export function windowed(count: number, rowHeight: number, scrollTop: number, viewHeight: number, extra = 8): Slice {
  const first = Math.floor(scrollTop / rowHeight) - extra;
  const from = Math.max(0, Math.min(first, count - 1));
  const to = Math.min(count, Math.ceil((scrollTop + viewHeight) / rowHeight) + extra);
  return { from, to: Math.max(from, to), above: from * rowHeight, below: Math.max(0, count - Math.max(from, to)) * rowHeight };
}
