export const PLACES = [
  { id: "home", label: "Home", icon: "M3 11 12 4l9 7v9h-6v-6H9v6H3z" },
  { id: "ask", label: "Ask", icon: "M4 5h16v11H10l-5 4v-4H4z" },
  { id: "runs", label: "Runs", icon: "M4 6h16M4 12h16M4 18h10" },
  { id: "compare", label: "Compare", icon: "M5 20V9M12 20V4M19 20v-7M3 20h18" },
  { id: "train", label: "Train", icon: "M4 4v16h16M7 6c1.5 8 5 10 13 10" },
  { id: "annotate", label: "Annotate", icon: "M4 7l2 2 3-4M4 16l2 2 3-4M13 7h7M13 16h7" },
  { id: "corpora", label: "Corpora", icon: "M5 4h11l3 3v13H5zM9 10h6M9 14h6" },
  { id: "models", label: "Models", icon: "M12 3 20 7.5v9L12 21l-8-4.5v-9zM12 12l8-4.5M12 12v9M12 12 4 7.5" },
  { id: "settings", label: "Settings", icon: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4" },
] as const;

export type Place = (typeof PLACES)[number]["id"] | "present";
/** `rest` is what follows the place: a run, a run and a question, the runs to compare, trainings. */
export type Route = { place: Place; rest: string[] };

/** `#/runs/RUN/QUESTION`, `#/compare/RUN/RUN`, `#/present/RUN/QUESTION`; anything unknown is Home. */
export function parseRoute(hash: string): Route {
  const [name, ...rest] = hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decode);
  if (name === "present" && rest.length === 2) return { place: "present", rest };
  const place = PLACES.find((place) => place.id === name)?.id ?? "home";
  if (place === "runs") return { place, rest: rest.slice(0, 2) };
  if (place === "annotate") return { place, rest: rest.slice(0, 1) };
  return { place, rest: ["compare", "corpora", "train"].includes(place) ? rest : [] };
}

export function href(place: Place, ...rest: string[]): string {
  return `#/${[place, ...rest].map(encodeURIComponent).join("/")}`;
}

export function go(place: Place, ...rest: string[]) {
  location.hash = href(place, ...rest);
}

/** Where Esc leads: one level up, and nowhere from a place itself. */
export function above({ place, rest }: Route): string | null {
  if (place === "present") return href("runs", ...rest);
  return rest.length ? href(place, ...(place === "runs" ? rest.slice(0, -1) : [])) : null;
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
