export const PLACES = [
  { id: "home", label: "Home", icon: "M3 11 12 4l9 7v9h-6v-6H9v6H3z" },
  { id: "ask", label: "Ask", icon: "M4 5h16v11H10l-5 4v-4H4z" },
  { id: "runs", label: "Runs", icon: "M4 6h16M4 12h16M4 18h10" },
  { id: "corpora", label: "Corpora", icon: "M5 4h11l3 3v13H5zM9 10h6M9 14h6" },
  { id: "models", label: "Models", icon: "M12 3 20 7.5v9L12 21l-8-4.5v-9zM12 12l8-4.5M12 12v9M12 12 4 7.5" },
  { id: "settings", label: "Settings", icon: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4" },
] as const;

export type Place = (typeof PLACES)[number]["id"];
export type Route = { place: Place; run?: string; question?: string };

/** `#/runs/ID/QUESTION` and the like; anything unknown is Home. */
export function parseRoute(hash: string): Route {
  const [name, run, question] = hash.replace(/^#\/?/, "").split("/").map(decode);
  const place = PLACES.find((place) => place.id === name)?.id ?? "home";
  if (place !== "runs" || !run) return { place };
  return question ? { place, run, question } : { place, run };
}

export function href(place: Place, run?: string, question?: string): string {
  const parts = [place, run, question].filter((part) => part !== undefined);
  return `#/${parts.map(encodeURIComponent).join("/")}`;
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
