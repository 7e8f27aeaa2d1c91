// The calls behind what was done, as programs that run as they are: curl, Python with httpx, JavaScript.

import type { SeparationRequest } from "../api/types";
import type { Origin } from "../state/recording";

export interface Call {
  server: string; // origin of the service
  hasKey: boolean;
  origin: Origin;
  request: SeparationRequest;
  files: ReadonlyMap<string, string>; // names of the examples by their ids
}

export type Language = "curl" | "python" | "javascript";

interface Upload {
  variable: string;
  id: string;
  origin: Origin;
}

/** The program in a language. */
export function snippet(call: Call, language: Language): string {
  const write = { curl, python, javascript }[language];
  return write(call, uploads(call));
}

/** The recording, then each example once. */
function uploads({ request, origin, files }: Call): Upload[] {
  const examples = new Set(
    (request.targets ?? []).flatMap(({ examples, not_examples }) =>
      [...(examples ?? []), ...(not_examples ?? [])].map(({ audio_id }) => audio_id),
    ),
  );
  return [
    { variable: "mixture", id: request.mixture.audio_id, origin },
    ...[...examples].map((id, index): Upload => ({
      variable: `example${index + 1}`,
      id,
      origin: { kind: "file", name: files.get(id) ?? "example.wav" },
    })),
  ];
}

/** JSON text in which the ids of uploads are replaced by what `reference` makes of their variables. */
function withVariables(json: string, all: Upload[], reference: (variable: string) => string): string {
  return all.reduce((text, { id, variable }) => text.replaceAll(JSON.stringify(id), reference(variable)), json);
}

function curl({ server, hasKey, request }: Call, all: Upload[]): string {
  const send = hasKey ? `curl -sS -H "$key"` : "curl -sS";
  const lines = all.map(({ variable, origin }) => {
    const content =
      origin.kind === "file"
        ? `-F ${shell(`file=@"${escapeQuotes(origin.name)}"`)}`
        : `-H "$json" -d ${shell(JSON.stringify({ url: origin.url }))}`;
    return `${variable}=$(${send} ${content} "$url/v1/audio" | id)`;
  });
  const quoted = shell(source(request, JSON_SYNTAX));
  const body = withVariables(quoted, all, (variable) => `"'$${variable}'"`);
  return [
    `url=${server}`,
    ...(hasKey ? [`key="Authorization: Bearer $EARMARK_KEY"`] : []),
    `json="Content-Type: application/json"`,
    `id() { python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])'; }`,
    ...lines,
    `job=$(${send} -H "$json" "$url/v1/separations" -d ${body} | id)`,
    `until ${send} -H "Prefer: wait=30" "$url/v1/separations/$job" |`,
    `  grep -qE '"finished_at": ?"'; do sleep 1; done`,
    `${send} --fail -o stems.zip "$url/v1/separations/$job/archive"`,
    "",
  ].join("\n");
}

function python({ server, hasKey, request }: Call, all: Upload[]): string {
  const headers = hasKey ? `, headers={"Authorization": f"Bearer {os.environ['EARMARK_KEY']}"}` : "";
  const lines = all.map(({ variable, origin }) => {
    const content =
      origin.kind === "file"
        ? `files={"file": open(${JSON.stringify(origin.name)}, "rb")}`
        : `json={"url": ${JSON.stringify(origin.url)}}`;
    return `${variable} = http.post("/v1/audio", ${content}).raise_for_status().json()["id"]`;
  });
  const json = withVariables(source(request, PYTHON_SYNTAX), all, (variable) => variable);
  return [
    ...(hasKey ? ["import os", ""] : []),
    "import httpx",
    "",
    `http = httpx.Client(base_url="${server}", timeout=90, follow_redirects=True${headers})`,
    ...lines,
    `job = http.post("/v1/separations", json=${json}).raise_for_status().json()`,
    `while job["finished_at"] is None:`,
    `    job = http.get(f"/v1/separations/{job['id']}", headers={"Prefer": "wait=60"}).raise_for_status().json()`,
    `for stem in job["stems"]:`,
    `    with open(f"{stem['name']}.${extension(request)}", "wb") as file:`,
    `        file.write(http.get(stem["url"]).raise_for_status().content)`,
    "",
  ].join("\n");
}

function javascript({ server, hasKey, request }: Call, all: Upload[]): string {
  const lines = all.flatMap(({ variable, origin }) => {
    if (origin.kind === "url") {
      return [`const ${variable} = (await call("/v1/audio", json({ url: ${JSON.stringify(origin.url)} }))).id;`];
    }
    const name = JSON.stringify(origin.name);
    return [
      `const ${variable}Form = new FormData();`,
      `${variable}Form.append("file", await openAsBlob(${name}), ${name});`,
      `const ${variable} = (await call("/v1/audio", { method: "POST", body: ${variable}Form })).id;`,
    ];
  });
  const authorization = hasKey ? "{ Authorization: `Bearer ${process.env.EARMARK_KEY}` }" : "{}";
  return [
    `import { openAsBlob } from "node:fs";`,
    `import { writeFile } from "node:fs/promises";`,
    "",
    `const headers = ${authorization};`,
    `const json = (body) => ({ method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });`,
    "",
    "async function get(path, options = {}) {",
    `  const answer = await fetch(new URL(path, "${server}"), { ...options, headers: { ...headers, ...options.headers } });`,
    "  if (!answer.ok) throw new Error(await answer.text());",
    "  return answer;",
    "}",
    "const call = async (path, options) => (await get(path, options)).json();",
    "",
    ...lines,
    `let job = await call("/v1/separations", json(${withVariables(source(request, JSON_SYNTAX), all, (variable) => variable)}));`,
    "while (!job.finished_at) {",
    '  job = await call(`/v1/separations/${job.id}`, { headers: { Prefer: "wait=60" } });',
    "}",
    "for (const stem of job.stems) {",
    `  await writeFile(\`\${stem.name}.${extension(request)}\`, (await get(stem.url)).body);`,
    "}",
    "",
  ].join("\n");
}

function extension(request: SeparationRequest): string {
  return request.output?.format ?? "flac";
}

function shell(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function escapeQuotes(text: string): string {
  return text.replaceAll("\\", "\\\\").replaceAll('"', '\\"');
}

interface Syntax {
  indent: string;
  literals: Record<string, string>;
  lastComma: string;
}

const JSON_SYNTAX: Syntax = { indent: "  ", literals: {}, lastComma: "" };
const PYTHON_SYNTAX: Syntax = { indent: "    ", literals: { true: "True", false: "False" }, lastComma: "," };
const LINE = 72; // characters

/** A JSON value as source text, on one line where that is short enough; strings are written alike in all languages. */
function source(value: unknown, syntax: Syntax, indent = ""): string {
  if (value === null || typeof value !== "object") return syntax.literals[String(value)] ?? JSON.stringify(value);
  const isList = Array.isArray(value);
  const [open, close] = isList ? ["[", "]"] : ["{", "}"];
  const inner = indent + syntax.indent;
  const items = Object.entries(value).map(
    ([name, item]) => `${isList ? "" : `${JSON.stringify(name)}: `}${source(item, syntax, inner)}`,
  );
  const line = `${open}${items.join(", ")}${close}`;
  if (inner.length + line.length <= LINE && !line.includes("\n")) return line;
  return `${open}\n${items.map((item) => inner + item).join(",\n")}${syntax.lastComma}\n${indent}${close}`;
}
