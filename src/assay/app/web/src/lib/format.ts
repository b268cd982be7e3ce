/* Numbers and tokens as people read them. */
import type { Cell, Plain } from "./types";

const MINUS = "\u2212", NONE = "–";
const group = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function number(value: unknown, digits = 4): string {
  if (typeof value !== "number" || !Number.isFinite(value)) return typeof value === "string" ? value : NONE;
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e15) return size >= 1e3 ? sign(group.format(value)) : sign(String(value));
  if (size >= 1e3 && size < 1e9) return sign(group.format(value));
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) return sign(value.toExponential(1).replace("e+", "e").replace(/e-/, "e" + MINUS));
  return sign(String(Number(value.toPrecision(digits))));
}

export const short = (value: unknown): string => number(value, 3);

export function percent(value: unknown): string {
  if (typeof value !== "number" || !Number.isFinite(value)) return NONE;
  const hundred = 100 * value, size = Math.abs(hundred);
  if (size !== 0 && size < 0.1) return (hundred > 0 ? "" : MINUS) + "<0.1%";
  return sign(hundred.toFixed(size >= 99.95 || size === 0 ? 0 : 1)) + "%";
}

export function interval(low: unknown, high: unknown, as: (value: unknown) => string = short): string {
  return typeof low === "number" && typeof high === "number" ? `${as(low)} to ${as(high)}` : NONE;
}

const sign = (text: string): string => text.replace(/^-/, MINUS);

export const count = (many: number, one: string, more = one + "s"): string => `${number(many)} ${many === 1 ? one : more}`;

/* A token as it stands in a row of tokens: control characters are shown, nothing else is changed. */
const SEEN: Record<string, string> = { "\n": "⏎", "\r": "␍", "\t": "⇥" };
export const visible = (piece: string): string => piece.replace(/[\n\r\t]/g, (found) => SEEN[found]!);

/* A token on its own: a leading space matters and is shown. */
export const alone = (piece: string): string => (piece === "" ? "∅" : visible(piece).replace(/^ +| +$/g, (found) => "␣".repeat(found.length)));

export const cellOf = (given: Cell | Plain): Cell => (given !== null && typeof given === "object" && !Array.isArray(given) ? given : { value: given as Plain });

export function when(made: string): string {
  const time = new Date(made);
  return Number.isNaN(time.getTime()) ? made : time.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
