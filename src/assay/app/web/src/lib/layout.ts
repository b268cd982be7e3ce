/* Which blocks stand side by side: two narrow ones that follow each other share a row. */
import type { Block } from "./types";

export type Place = { block: Block; width: "full" | "half" | "alone" };

function narrow(block: Block): boolean {
  if (block.width) return block.width === "half";
  if (block.type === "table") return block.columns.length <= 3 && block.rows.length <= 30 && block.total === undefined;
  if (block.type === "links") return Boolean(block.title);
  return ["histogram", "line", "scatter", "bars"].includes(block.type);
}

export function places(blocks: Block[]): Place[] {
  const made: Place[] = [];
  for (let at = 0; at < blocks.length; at += 1) {
    const block = blocks[at]!, next = blocks[at + 1];
    if (narrow(block) && next && narrow(next)) {
      made.push({ block, width: "half" }, { block: next, width: "half" });
      at += 1;
    } else made.push({ block, width: narrow(block) ? "alone" : "full" });
  }
  return made;
}
