/* The documents that pages are made of. The server's own description is in its OpenAPI file; these are the same forms. */
export type Span = { text: string; href?: string; term?: string; strong?: boolean };
export type Inline = (string | Span)[];
export type Maybe = number | null | undefined;

type Of<T extends string, Body> = Body & { type: T; id: string; title?: string; help?: string; note?: string; width?: "half" | "full" };

export type Fact = { label: string; value: string | number | null; note?: string; help?: string; href?: string; tone?: string };
export type Kind = "text" | "number" | "percent" | "verdict" | "link" | "bar" | "tokens" | "interval";
export type Column = { key: string; label: string; kind: Kind; help?: string };
export type Plain = string | number | boolean | string[] | null | undefined;
export type Cell = { value: Plain; href?: string; low?: Maybe; high?: Maybe };
export type Row = Record<string, Cell | Plain>;
export type Window = { pieces: string[]; values: number[]; at: number; document: string; position: number; note?: string };
export type Axis = { label: string; log?: boolean };
export type Point = { x: number; y: Maybe; low?: Maybe; high?: Maybe };
export type Spot = { x: number; y: number; label: string; href?: string; group?: string; size?: number };
export type Node = { id: string; label: string; layer: number; position: number; value: number; kind: string; href?: string; group?: string; text?: string };
export type Edge = { from: string; to: string; weight: number };
export type Action = { verb: string; arguments: Record<string, unknown> };
export type Field = {
  name: string; label: string; kind: "text" | "area" | "number" | "choice" | "slider" | "flag"; value?: string | number | boolean | null;
  choices?: string[]; min?: number; max?: number; step?: number; help?: string; required?: boolean;
};
export type Gate = {
  name: string; split: string; estimate: Maybe; low: Maybe; high: Maybe; sesoi: Maybe; p: Maybe; passed: boolean; required: boolean;
};
export type Counter = { text?: string; pieces?: string[]; score: Maybe; status: string };
export type Card = {
  id: string; statement: string; kind: string; verdict: string; sentence: string; reasons: string[]; qualifiers: string[]; gates: Gate[];
  counterexamples: Counter[]; shows_not?: string[]; href: string; rerun?: Action;
};
export type Term = { word: string; meaning: string };
export type Firing = { name: string; label: string; href?: string; values: number[] };

export type Text = Of<"text", { paragraphs: Inline[] }>;
export type Facts = Of<"facts", { items: Fact[] }>;
export type Table = Of<"table", {
  columns: Column[]; rows: Row[]; total?: number; offset?: number; limit?: number; param?: string; sort?: string;
}>;
export type Contexts = Of<"contexts", { groups: { label: string; windows: Window[] }[]; largest: number }>;
export type Histogram = Of<"histogram", { edges: number[]; series: { label: string; counts: number[] }[]; x: Axis; y: Axis }>;
export type Line = Of<"line", {
  series: { label: string; points: Point[] }[]; x: Axis; y: Axis; marks?: { x?: number; y?: number; label: string }[];
}>;
export type Heatmap = Of<"heatmap", {
  rows: string[]; columns: string[]; values: Maybe[][]; low?: Maybe[][]; high?: Maybe[][]; scale: "diverging" | "sequential";
  row_label: string; column_label: string; unit: string; href?: string;
}>;
export type Bars = Of<"bars", { items: { label: string; value: Maybe; low?: Maybe; high?: Maybe; href?: string }[]; unit: string }>;
export type Graph = Of<"graph", { nodes: Node[]; edges: Edge[]; layers: string[]; positions: string[]; intervene?: Action }>;
export type Scatter = Of<"scatter", { points: Spot[]; x: Axis; y: Axis }>;
export type Form = Of<"form", {
  verb: string; role: string; fields: Field[]; submit: string; stream?: boolean; fixed?: Record<string, unknown>; auto?: boolean; page?: string;
}>;
export type Claims = Of<"claims", { cards: Card[] }>;
export type Patterns = Of<"patterns", { pieces: string[]; heads: string[]; values: number[][][] }>;
export type Texts = Of<"texts", { columns: { label: string; pieces: string[]; values?: number[]; note?: string }[] }>;
export type Links = Of<"links", { items: { label: string; href: string; note?: string }[] }>;
export type Unexplained = Of<"unexplained", { items: { what: string; share: Maybe; low?: Maybe; high?: Maybe; note?: string }[] }>;
export type Tokens = Of<"tokens", { pieces: string[]; features: Firing[] }>;
export type Terms = Of<"terms", { items: Term[] }>;

export type Block =
  | Text | Facts | Table | Contexts | Histogram | Line | Heatmap | Bars | Graph | Scatter | Form | Claims | Patterns | Texts | Links
  | Unexplained | Tokens | Terms;

export type Page = {
  page: string; title: string; intro: Inline; params: Record<string, unknown>; blocks: Block[]; counts: Record<string, number>; made: string;
  empty: boolean;
};
export type Result = { record?: unknown; blocks?: Block[] };
export type Entry = { page: string; title: string; group?: string; summary?: string };
export type Fault = { message: string; argument?: string; hint?: string };
