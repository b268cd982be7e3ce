/* Colours for canvases. Pale is "nothing" in light, dark in dark; blue and orange stay apart in the common forms of colour blindness. */
type Rgb = [number, number, number];
export type Scale = "diverging" | "sequential";

const STOPS = {
  diverging: {
    light: ["#0a3a6b", "#2f6ea8", "#82b1d3", "#c9dcea", "#f6f4ef", "#f7d3b0", "#ec9a58", "#c85f16", "#7f3205"],
    dark: ["#b9dbf7", "#6fb0e6", "#3f7fb8", "#2b4c69", "#242b33", "#5a4330", "#a3683a", "#e08c4a", "#ffd2a8"],
  },
  sequential: {
    light: ["#f6f4ef", "#d9e6ee", "#a9c9e0", "#6fa3cb", "#3c79ae", "#1a5488", "#0a3358"],
    dark: ["#242b33", "#2b4356", "#2f5f83", "#3f82b4", "#66a7d8", "#9ccbee", "#d8eefc"],
  },
};
const PARTS = 256;
const kept = new Map<string, string[]>();

const rgb = (hex: string): Rgb => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)) as Rgb;

export const isDark = (): boolean => getComputedStyle(document.body).getPropertyValue("--dark").trim() === "1";

/* PARTS colours from low to high. */
export function ramp(scale: Scale, dark = isDark()): string[] {
  const name = `${scale} ${dark}`;
  const found = kept.get(name);
  if (found) return found;
  const stops = STOPS[scale][dark ? "dark" : "light"].map(rgb);
  const made = Array.from({ length: PARTS }, (_, at) => {
    const place = (at / (PARTS - 1)) * (stops.length - 1), from = Math.min(stops.length - 2, Math.floor(place)), share = place - from;
    const [a, b] = [stops[from]!, stops[from + 1]!];
    return `rgb(${[0, 1, 2].map((part) => Math.round(a[part]! + share * (b[part]! - a[part]!))).join(",")})`;
  });
  kept.set(name, made);
  return made;
}

export const shade = (colours: string[], share: number): string => colours[Math.max(0, Math.min(PARTS - 1, Math.round(share * (PARTS - 1))))]!;

/* The computed colours of the theme, by the name of their variable. */
export function inks(element: Element, ...names: string[]): Record<string, string> {
  const probe = document.createElement("span"), found: Record<string, string> = {};
  element.append(probe);
  for (const name of names) {
    probe.style.color = `var(--${name})`;
    found[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return found;
}

export const SERIES = 6;
export const series = (at: number): string => `var(--series-${(at % SERIES) + 1})`;
