/** Items that hold every letter of the query in order; those where it stands together or begins a word come first. */
export function ranked<T>(items: T[], query: string, text: (item: T) => string): T[] {
  const wanted = query.toLowerCase().replace(/\s+/g, " ").trim();
  if (!wanted) return items;
  return items
    .map((item, i) => ({ item, i, score: score(text(item).toLowerCase(), wanted) }))
    .filter(({ score }) => score > 0)
    .sort((a, b) => b.score - a.score || a.i - b.i)
    .map(({ item }) => item);
}

/** 4 begins the text, 3 begins a word, 2 stands together, 1 is scattered, 0 is absent. */
function score(text: string, wanted: string): number {
  const at = text.indexOf(wanted);
  if (at === 0) return 4;
  if (at > 0) return /[a-z0-9]/.test(text[at - 1] ?? "") ? 2 : 3;
  let from = 0;
  for (const letter of wanted) {
    const found = text.indexOf(letter, from);
    if (found < 0) return 0;
    from = found + 1;
  }
  return wanted.length > 2 ? 1 : 0;
}
