// Turns vega-datasets' birdstrikes.csv (argument 1) into newline-delimited JSON on stdout:
// one object per row, every row, in the file's order. Integer columns become numbers, empty
// fields become null, column names become snake_case.
import { readFileSync } from "node:fs";

const INTEGERS = new Set(["cost_other", "cost_repair", "cost_total", "speed_ias_in_knots"]);

function* records(text) {
  let row = [], field = "", quoted = false;
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (quoted) {
      if (c !== '"') field += c;
      else if (text[i + 1] === '"') { field += '"'; i++; }
      else quoted = false;
    } else if (c === '"') quoted = true;
    else if (c === ",") { row.push(field); field = ""; }
    else if (c === "\n") { row.push(field); yield row; row = []; field = ""; }
    else if (c !== "\r") field += c;
  }
  if (field !== "" || row.length > 0) { row.push(field); yield row; }
}

const [head, ...rows] = records(readFileSync(process.argv[2], "utf8"));
const names = head.map((h) => h.toLowerCase().replace(/[^a-z]+/g, "_").replace(/_$/, ""));
for (const row of rows) {
  if (row.length !== names.length) throw new Error(`a row has ${row.length} fields, not ${names.length}`);
  const object = {};
  names.forEach((name, i) => {
    object[name] = row[i] === "" ? null : INTEGERS.has(name) ? Number(row[i]) : row[i];
  });
  process.stdout.write(JSON.stringify(object) + "\n");
}
