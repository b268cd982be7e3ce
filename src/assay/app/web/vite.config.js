/* Builds two things into ../static: index.html with hash-named assets, for the server; and export.html, one page with the same
   bundle inside, in which the server puts a document. The page's own policy names the hashes of its script and its style. */
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

const OUT = "../static";
const PLACE = '"__ASSAY_DOCUMENT__"';
const hash = (text) => `'sha256-${createHash("sha256").update(text, "utf8").digest("base64")}'`;

function exportPage() {
  let script = "", style = "", folder = "";
  return {
    name: "export-page",
    apply: "build",
    writeBundle(options, bundle) {
      folder = options.dir;
      for (const part of Object.values(bundle)) {
        if (part.type === "chunk") script = part.code;
        else if (part.fileName.endsWith(".css")) style = String(part.source);
      }
      script = script.replaceAll("</script", "<\\/script").replaceAll("<!--", "<\\!--");
      const policy = `default-src 'none'; script-src ${hash(script)}; style-src ${hash(style)}; img-src data: blob:; base-uri 'none'; form-action 'none'`;
      const parts = { POLICY: policy, STYLE: style, DOCUMENT: PLACE, SCRIPT: script };
      const shell = readFileSync(join(import.meta.dirname ?? ".", "export.html"), "utf8");
      writeFileSync(join(folder, "export.html"), shell.replace(/\{\{(\w+)\}\}/g, (_, name) => parts[name]));
    },
  };
}

export default defineConfig({
  base: "./",
  plugins: [svelte(), exportPage()],
  build: {
    outDir: OUT,
    emptyOutDir: true,
    target: "es2022",
    modulePreload: false,
    cssCodeSplit: false,
    assetsInlineLimit: 0,
    rollupOptions: { output: { format: "iife", inlineDynamicImports: true } },
  },
});
