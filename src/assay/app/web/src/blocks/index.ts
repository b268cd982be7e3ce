/* One component per kind of block. A new kind is one file and one line here. */
import type { Component } from "svelte";
import type { Block } from "../lib/types";
import Bars from "./Bars.svelte";
import Claims from "./Claims.svelte";
import Contexts from "./Contexts.svelte";
import Facts from "./Facts.svelte";
import Form from "./Form.svelte";
import Graph from "./Graph.svelte";
import Heatmap from "./Heatmap.svelte";
import Histogram from "./Histogram.svelte";
import Line from "./Line.svelte";
import Links from "./Links.svelte";
import Patterns from "./Patterns.svelte";
import Scatter from "./Scatter.svelte";
import Table from "./Table.svelte";
import Terms from "./Terms.svelte";
import Text from "./Text.svelte";
import Texts from "./Texts.svelte";
import Tokens from "./Tokens.svelte";
import Unexplained from "./Unexplained.svelte";

const PARTS = {
  bars: Bars, claims: Claims, contexts: Contexts, facts: Facts, form: Form, graph: Graph, heatmap: Heatmap, histogram: Histogram,
  line: Line, links: Links, patterns: Patterns, scatter: Scatter, table: Table, terms: Terms, text: Text, texts: Texts, tokens: Tokens,
  unexplained: Unexplained,
} satisfies { [T in Block["type"]]: Component<{ block: Extract<Block, { type: T }> }> };

export const partOf = (type: string): Component<{ block: Block }> | undefined => (PARTS as unknown as Record<string, Component<{ block: Block }>>)[type];
