import type { IntervalView } from "../ipc";

type Maybe = number | null | undefined;

/** A share as a percentage: 0.1234 is "12.3". */
export function percent(value: Maybe): string {
  return value == null ? "–" : (value * 100).toFixed(1);
}

/** "41.2 (35.0–47.9)": a mean in percent with its 95% interval. */
export function interval(value: IntervalView | null | undefined): string {
  if (!value) return "–";
  return `${percent(value.mean)} (${percent(value.low)}–${percent(value.high)})`;
}

export function fixed(value: Maybe, digits = 2): string {
  return value == null ? "–" : value.toFixed(digits).replace("-", "−");
}

export function signed(value: Maybe, digits = 2): string {
  if (value == null) return "–";
  const size = Math.abs(value).toFixed(digits);
  return Number(size) === 0 ? size : `${value < 0 ? "−" : "+"}${size}`;
}

export function duration(ms: Maybe): string {
  if (ms == null) return "–";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function bytes(value: Maybe): string {
  if (value == null) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  let left = value;
  while (left >= 1000 && unit < units.length - 1) {
    left /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? left : left.toFixed(left < 10 ? 2 : left < 100 ? 1 : 0)} ${units[unit]}`;
}

/** 134515008 is "135 M". */
export function magnitude(value: Maybe): string {
  if (value == null || value === 0) return "–";
  if (value >= 1e9) return `${(value / 1e9).toFixed(2)} B`;
  if (value >= 1e6) return `${(value / 1e6).toFixed(0)} M`;
  return count(value);
}

export function count(value: number): string {
  return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

export function plural(value: number, one: string, many = `${one}s`): string {
  return `${count(value)} ${value === 1 ? one : many}`;
}

/** Three digits of a number of any size: "0.000125" is "1.25e−4". */
export function short(value: Maybe): string {
  if (value == null) return "–";
  const size = Math.abs(value);
  const text = size !== 0 && (size < 0.001 || size >= 1e6) ? value.toExponential(2).replace(/\.?0*e\+?/, "e") : String(Number(value.toPrecision(3)));
  return text.replaceAll("-", "−");
}
