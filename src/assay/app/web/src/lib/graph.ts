/* A layered graph: where its nodes are, what it looks like when some are grouped, and how it is painted.

   1. Every node has its place already: its position is the column, its layer the row, the highest on top. Nodes of one cell stand in
      rows beside each other.
   2. A group stands for its members at the mean of their places; edges that join the same two ends are added up.
   3. Edges are painted in batches of equal look, so that thirty thousand need a few calls. */
import type { Edge, Graph, Node } from "./types";

export type Item = { id: string; label: string; x: number; y: number; size: number; kind: string; value: number; members: Node[]; rank: number };
export type Link = { from: Item; to: Item; weight: number };
export type Plan = { items: Item[]; links: Link[]; byId: Map<string, Item>; columns: Band[]; rows: Band[]; width: number; height: number; largest: number };
export type Band = { label: string; from: number; to: number };
export type Groups = Record<string, string[]>;
/* `tall`: how much further apart layers are than they are laid out; below 1 nearer. */
export type View = { x: number; y: number; zoom: number; tall: number };
export type Inks = Record<string, string>;

export const STEP = 26;
const PAD = 22, WIDEST = 10;

type Spots = { at: Map<string, { x: number; y: number }>; columns: Band[]; rows: Band[]; width: number; height: number };

function spots(block: Graph): Spots {
  const cells = new Map<string, Node[]>(), columns = Math.max(1, block.positions.length), rows = Math.max(1, block.layers.length);
  const column = (node: Node) => Math.max(0, Math.min(columns - 1, Math.round(node.position) || 0));
  const row = (node: Node) => Math.max(0, Math.min(rows - 1, Math.round(node.layer) || 0));
  for (const node of block.nodes) {
    const key = `${column(node)} ${row(node)}`, cell = cells.get(key);
    if (cell) cell.push(node);
    else cells.set(key, [node]);
  }
  const across = (many: number) => (many <= WIDEST ? many : Math.max(WIDEST, Math.ceil(Math.sqrt(3 * many))));
  const wide = new Array<number>(columns).fill(1), tall = new Array<number>(rows).fill(1);
  for (const [key, cell] of cells) {
    const [c, r] = key.split(" ").map(Number) as [number, number];
    wide[c] = Math.max(wide[c]!, Math.min(cell.length, across(cell.length)));
    tall[r] = Math.max(tall[r]!, Math.ceil(cell.length / across(cell.length)));
  }
  const xs = bands(block.positions, columns, (at) => Math.max(58, wide[at]! * STEP + PAD));
  const heights = bands([...block.layers].reverse(), rows, (at) => tall[rows - 1 - at]! * STEP + PAD);
  const at = new Map<string, { x: number; y: number }>();
  for (const [key, cell] of cells) {
    const [c, r] = key.split(" ").map(Number) as [number, number], each = across(cell.length);
    const left = (xs[c]!.from + xs[c]!.to) / 2, band = heights[rows - 1 - r]!, lines = Math.ceil(cell.length / each);
    cell.forEach((node, index) => {
      const line = Math.floor(index / each), inLine = Math.min(each, cell.length - line * each);
      at.set(node.id, { x: left + ((index % each) - (inLine - 1) / 2) * STEP, y: (band.from + band.to) / 2 + (line - (lines - 1) / 2) * STEP });
    });
  }
  return { at, columns: xs, rows: heights, width: xs.at(-1)!.to, height: heights.at(-1)!.to };
}

function bands(labels: string[], many: number, size: (at: number) => number): Band[] {
  let from = 0;
  return Array.from({ length: many }, (_, at) => {
    const band = { label: labels[at] ?? String(at), from, to: from + size(at) };
    from = band.to;
    return band;
  });
}

export function plan(block: Graph, groups: Groups): Plan {
  const { at, ...frame } = spots(block), owner = new Map<string, string>();
  for (const [name, ids] of Object.entries(groups)) for (const id of ids) owner.set(id, `group:${name}`);
  const largest = block.nodes.reduce((most, node) => Math.max(most, Math.abs(node.value) || 0), 0) || 1;
  const byId = new Map<string, Item>();
  for (const node of block.nodes) {
    const id = owner.get(node.id) ?? node.id, found = byId.get(id);
    if (found) { found.members.push(node); continue; }
    byId.set(id, { id, label: owner.has(node.id) ? id.slice(6) : node.label, ...at.get(node.id)!, size: 0, kind: owner.has(node.id) ? "group" : node.kind, value: node.value, members: [node], rank: 0 });
  }
  for (const item of byId.values()) settle(item, at, largest);
  const links = joined(block.edges, (id) => byId.get(owner.get(id) ?? id));
  return { items: [...byId.values()].sort((a, b) => b.size - a.size), links, byId, ...frame, largest: Math.abs(links[0]?.weight ?? 0) || 1 };
}

function settle(item: Item, at: Map<string, { x: number; y: number }>, largest: number) {
  const many = item.members.length;
  item.x = item.members.reduce((sum, node) => sum + at.get(node.id)!.x, 0) / many;
  item.y = item.members.reduce((sum, node) => sum + at.get(node.id)!.y, 0) / many;
  item.value = item.members.reduce((sum, node) => sum + (node.value || 0), 0);
  item.size = item.kind === "group" ? 11 : 4 + 5 * Math.sqrt(Math.min(1, Math.abs(item.value) / largest || 0));
}

/* Strongest first; inside a group nothing is drawn. */
function joined(edges: Edge[], find: (id: string) => Item | undefined): Link[] {
  const found = new Map<string, Link>();
  for (const edge of edges) {
    const from = find(edge.from), to = find(edge.to);
    if (!from || !to || from === to) continue;
    const key = `${from.id}\n${to.id}`, link = found.get(key);
    if (link) link.weight += edge.weight;
    else found.set(key, { from, to, weight: edge.weight });
  }
  return [...found.values()].sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
}

export function reach(links: Link[]): Map<string, Link[]> {
  const found = new Map<string, Link[]>();
  const add = (id: string, link: Link) => { const list = found.get(id); if (list) list.push(link); else found.set(id, [link]); };
  for (const link of links) { add(link.from.id, link); add(link.to.id, link); }
  return found;
}

/* What is in the middle, in the plan's own lengths, and how large: what a link keeps of a view. */
export type Place = [number, number, number];

/* All of it: one direction is stretched up to so many times as much as the other, so that the frame is filled. */
const STRETCH = 2.2;

export function home(plan: Plan, width: number, height: number): View {
  const across = (width - 74) / plan.width, up = (height - 40) / plan.height;
  const zoom = Math.min(1.6, across, STRETCH * up), tall = Math.min(STRETCH, up / zoom);
  return { zoom, tall, x: 66 + Math.max(0, (width - 74 - plan.width * zoom) / 2), y: Math.max(8, (height - 34 - plan.height * zoom * tall) / 2) };
}

const CURVED = 3000, WIDTHS = [0.6, 1, 1.6, 2.6], ALPHAS = [0.28, 0.42, 0.62, 0.85];

/* `faint`: what is not in focus is drawn pale. */
export function paintLinks(pen: CanvasRenderingContext2D, links: Link[], view: View, ink: Inks, largest: number, faint: boolean) {
  const curved = links.length <= CURVED, batches = new Map<string, Link[]>();
  const crowd = links.length > 8000 ? 0.45 : links.length > 1500 ? 0.7 : 1;
  for (const link of links) {
    const share = Math.abs(link.weight) / largest, level = share > 0.5 ? 3 : share > 0.2 ? 2 : share > 0.06 ? 1 : 0;
    const key = `${level} ${link.weight < 0}`, batch = batches.get(key);
    if (batch) batch.push(link);
    else batches.set(key, [link]);
  }
  for (const key of [...batches.keys()].sort()) {
    const [level, minus] = key.split(" ") as [string, string];
    pen.strokeStyle = minus === "true" ? ink.down! : ink.up!;
    pen.lineWidth = WIDTHS[+level]! * Math.max(0.6, Math.min(1.6, view.zoom));
    pen.globalAlpha = faint ? 0.1 : ALPHAS[+level]! * crowd;
    pen.setLineDash(minus === "true" && curved ? [7, 4] : []);
    strokes(pen, batches.get(key)!, view, curved);
  }
  pen.setLineDash([]);
  pen.globalAlpha = 1;
}

const AT_ONCE = 250; /* one path of thousands of lines is slower than a few of hundreds */

function strokes(pen: CanvasRenderingContext2D, links: Link[], view: View, curved: boolean) {
  const tall = view.zoom * view.tall;
  for (let at = 0; at < links.length; at += AT_ONCE) {
    pen.beginPath();
    for (const { from, to } of links.slice(at, at + AT_ONCE)) {
      const a = view.x + from.x * view.zoom, b = view.y + from.y * tall, c = view.x + to.x * view.zoom, d = view.y + to.y * tall;
      pen.moveTo(a, b);
      if (!curved) pen.lineTo(c, d);
      else { const bend = 0.42 * (d - b); pen.bezierCurveTo(a, b + bend, c, d - bend, c, d); }
    }
    pen.stroke();
  }
}

export function paintItem(pen: CanvasRenderingContext2D, item: Item, view: View, ink: Inks, look: { pinned: boolean; chosen: boolean; over: boolean; faint: boolean }) {
  const x = view.x + item.x * view.zoom, y = view.y + item.y * view.zoom * view.tall, r = Math.max(1.6, item.size * Math.max(0.35, Math.min(1.3, view.zoom)));
  pen.globalAlpha = look.faint ? 0.22 : 1;
  pen.fillStyle = look.pinned ? ink.accent! : item.kind === "error" ? ink.soft! : ink.card!;
  pen.strokeStyle = look.over || look.pinned ? ink.accent! : item.kind === "error" ? ink.muted! : ink.ink!;
  pen.lineWidth = look.over ? 2.6 : r < 3 ? 0.8 : 1.2;
  outline(pen, item.kind, x, y, r);
  pen.fill();
  pen.stroke();
  if (item.kind === "group") { outline(pen, "group", x, y, r - 3); pen.stroke(); }
  if (look.chosen) { pen.setLineDash([3, 2]); outline(pen, "latent", x, y, r + 4); pen.stroke(); pen.setLineDash([]); }
  pen.globalAlpha = 1;
}

/* Nodes that no shown edge touches: where they are, and no more. */
export function paintRest(pen: CanvasRenderingContext2D, items: Item[], view: View, ink: Inks, faint: boolean) {
  pen.fillStyle = ink.muted!;
  pen.globalAlpha = faint ? 0.16 : 0.4;
  for (const item of items) pen.fillRect(view.x + item.x * view.zoom - 1, view.y + item.y * view.zoom * view.tall - 1, 2, 2);
  pen.globalAlpha = 1;
}

const SQUARE = new Set(["embed", "embedding", "token", "logit", "logits", "input", "output"]);
export const shapeOf = (kind: string): string => (kind === "group" ? "◎" : kind === "error" ? "◇" : SQUARE.has(kind) ? "□" : "○");

function outline(pen: CanvasRenderingContext2D, kind: string, x: number, y: number, r: number) {
  pen.beginPath();
  if (kind === "error") { pen.moveTo(x, y - r * 1.15); pen.lineTo(x + r * 1.15, y); pen.lineTo(x, y + r * 1.15); pen.lineTo(x - r * 1.15, y); pen.closePath(); }
  else if (SQUARE.has(kind)) pen.rect(x - r, y - r, 2 * r, 2 * r);
  else pen.arc(x, y, r, 0, 7);
}

/* Labels where there is room: the largest nodes first, none over another. */
export function paintLabels(pen: CanvasRenderingContext2D, items: Item[], view: View, ink: Inks, width: number, height: number, text: (item: Item) => string) {
  const taken = new Set<string>(), CELL = 14, LINE = 9;
  pen.fillStyle = ink.ink!;
  pen.textAlign = "center";
  pen.textBaseline = "top";
  pen.lineWidth = 3;
  pen.strokeStyle = ink.paper!;
  pen.lineJoin = "round";
  for (const item of items) {
    const x = view.x + item.x * view.zoom, y = view.y + item.y * view.zoom * view.tall + item.size * Math.max(0.35, Math.min(1.3, view.zoom)) + 2;
    if (x < 0 || x > width || y < 0 || y > height - 24) continue;
    const said = text(item), half = pen.measureText(said).width / 2, cells: string[] = [];
    if (x - half < 58) continue; // there the names of layers stand
    for (let column = Math.floor((x - half) / CELL); column <= Math.floor((x + half) / CELL); column += 1) for (let row = Math.floor((y - 3) / CELL); row <= Math.floor((y + LINE) / CELL); row += 1) cells.push(`${column} ${row}`);
    if (cells.some((cell) => taken.has(cell))) continue;
    for (const cell of cells) taken.add(cell);
    pen.strokeText(said, x, y);
    pen.fillText(said, x, y);
  }
}
