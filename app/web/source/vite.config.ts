import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join, relative, sep } from "node:path";
import { defineConfig, type Plugin } from "vite";

const SOURCE = import.meta.dirname;

/** Writes the digest of the sources beside what is built from them; a test compares it, without Node. */
function sourcesDigest(): Plugin {
  return {
    name: "sources-digest",
    generateBundle() {
      const files = readdirSync(SOURCE, { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile())
        .map((entry) => relative(SOURCE, join(entry.parentPath, entry.name)).split(sep).join("/"))
        .filter((path) => !path.startsWith("node_modules/"))
        .sort();
      const digest = createHash("sha256");
      for (const path of files) digest.update(`${path}\0`).update(readFileSync(join(SOURCE, path)));
      this.emitFile({ type: "asset", fileName: "sources.sha256", source: `${digest.digest("hex")}\n` });
    },
  };
}

export default defineConfig({
  root: SOURCE,
  base: "/page/",
  publicDir: false,
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: "../files",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: false,
    license: { fileName: "licences.md" },
    rolldownOptions: {
      input: "src/main.tsx",
      output: { entryFileNames: "page.js", assetFileNames: "page[extname]" },
    },
  },
  plugins: [sourcesDigest()],
  test: { include: ["src/**/*.test.ts"] },
} as Parameters<typeof defineConfig>[0]);
