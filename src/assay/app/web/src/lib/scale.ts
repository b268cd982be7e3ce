/* Axes: a scale over what is there, linear or logarithmic, with places for its labels. */
import { scaleLinear, scaleLog } from "d3-scale";
import { short } from "./format";
import type { Axis } from "./types";

export type Scale = { (value: number): number; invert: (at: number) => number; ticks: { value: number; label: string }[]; low: number; high: number; log: boolean };
export type Box = { width: number; height: number; left: number; right: number; top: number; bottom: number };

export const box = (width: number, height: number, left = 62, right = 14, top = 10, bottom = 38): Box => ({ width: Math.max(width, 160), height, left, right, top, bottom });

const extent = (values: number[]): [number, number] => {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [0, 1];
};

/* `zero`: the axis begins at 0, as lengths of bars must. A log axis that meets values of 0 or less is drawn linear. */
export function scale(values: number[], range: [number, number], axis: Axis, zero = false, nice = true): Scale {
  const finite = values.filter(Number.isFinite);
  const log = Boolean(axis.log) && finite.length > 0 && finite.every((value) => value > 0);
  let [low, high] = extent(finite);
  if (zero && !log) [low, high] = [Math.min(0, low), Math.max(0, high)];
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - (zero && low === 0 ? 0 : Math.abs(low) * 0.1 || 0.5), high + (Math.abs(high) * 0.1 || 0.5)];
  const made = log ? scaleLog([low, high], range) : scaleLinear([low, high], range);
  if (nice && !log) made.nice();
  const many = Math.max(2, Math.round(Math.abs(range[1] - range[0]) / 70));
  const found = log ? powers(low, high, many) : made.ticks(many);
  const [first, last] = made.domain() as [number, number];
  const call = (value: number) => made(value) as number;
  return Object.assign(call, { invert: (at: number) => made.invert(at) as number, ticks: apart(found, call, range[0] < range[1] ? 46 : 18).map((value) => ({ value, label: short(value) })), low: first, high: last, log });
}

/* Labels that stand far enough from the one before. */
function apart(values: number[], place: (value: number) => number, least: number): number[] {
  const kept: number[] = [];
  for (const value of values) if (!kept.length || Math.abs(place(value) - place(kept.at(-1)!)) >= least) kept.push(value);
  return kept;
}

function powers(low: number, high: number, many: number): number[] {
  const from = Math.ceil(Math.log10(low) - 1e-9), to = Math.floor(Math.log10(high) + 1e-9);
  if (to - from < 1) return scaleLinear([low, high], [0, 1]).ticks(many).filter((value) => value > 0);
  const step = Math.max(1, Math.ceil((to - from + 1) / many));
  return Array.from({ length: Math.floor((to - from) / step) + 1 }, (_, at) => 10 ** (from + at * step));
}
