import type { PassageView, Segment } from "../ipc";

/** A passage that holds the answer, with the answer's words marked. */
export type Support = { passage: PassageView; text: Segment[] };

/** Cuts text at every whole-word occurrence of `needle`, in any case. */
export function marked(text: string, needle: string): Segment[] {
  const words = needle.trim().split(/\s+/).filter(Boolean).map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  if (!words.length) return [{ text, marked: false }];
  const pattern = new RegExp(`(?<![\\p{L}\\p{N}])${words.join("\\s+")}(?![\\p{L}\\p{N}])`, "giu");
  const parts: Segment[] = [];
  let at = 0;
  for (const found of text.matchAll(pattern)) {
    if (found.index > at) parts.push({ text: text.slice(at, found.index), marked: false });
    parts.push({ text: found[0], marked: true });
    at = found.index + found[0].length;
  }
  if (at < text.length) parts.push({ text: text.slice(at), marked: false });
  return parts;
}

/** The passages whose own words hold the answer, gold ones first. Empty is an honest result. */
export function support(passages: PassageView[], answer: string | null, most = 4): Support[] {
  const needle = bare(answer ?? "");
  if (!needle || isVerdict(needle)) return [];
  const found = passages.flatMap((passage) => {
    const text = marked(passage.text.map((part) => part.text).join(""), needle);
    const inTitle = marked(passage.title, needle).some((part) => part.marked);
    return inTitle || text.some((part) => part.marked) ? [{ passage, text }] : [];
  });
  return found.toSorted((a, b) => Number(b.passage.gold) - Number(a.passage.gold)).slice(0, most);
}

/** Yes or no is a judgement over passages; no passage says it. */
export function isVerdict(answer: string): boolean {
  return /^(yes|no|true|false)$/i.test(bare(answer));
}

function bare(answer: string): string {
  return answer.trim().replace(/^["'“‘(]+|["'”’).,;:!]+$/gu, "").trim();
}
