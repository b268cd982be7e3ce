/* An export carries its document inside; then there is no server to ask. */
import type { Page } from "./types";

export type Embedded = { document: Page; terms: Record<string, string> };

function read(): Embedded | null {
  const text = document.getElementById("assay-document")?.textContent;
  if (!text) return null;
  const found = JSON.parse(text) as Embedded | Page | string;
  if (typeof found === "string") return null;
  return "blocks" in found ? { document: found, terms: {} } : { document: found.document, terms: found.terms ?? {} };
}

export const embedded: Embedded | null = read();
