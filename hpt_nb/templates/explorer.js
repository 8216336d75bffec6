"use strict";
const data = JSON.parse(document.getElementById("data").textContent), $ = id => document.getElementById(id);
const position = new Map(data.tokens.map((t, i) => [t, i]));
const shown = t => data.shown[t] || t.replace(/^ | $/g, "\u2423");       // a space at an end is a sign
let chosen = null;

function element(tag, text, name) { const e = document.createElement(tag); if (text !== undefined) e.textContent = text; if (name) e.className = name; return e; }
function tokenButton(text, shared) {
  const at = position.get(text), e = element("button", (shared ? "\u25cf " : "") + shown(text), "token" + (shared ? " shared" : "") + (at === undefined ? " plain" : "") + (text === chosen ? " chosen" : ""));
  e.type = "button";
  if (at === undefined) { e.title = "not in the common vocabulary"; e.disabled = true; }
  else { e.title = describe(at); e.onclick = () => choose(text); }
  return e;
}
function describe(i) { return (data.J ? "J " + data.J[i].toFixed(4) + ", " : "") + "rank " + (i + 1).toLocaleString("en") + " of " + data.tokens.length.toLocaleString("en"); }

function suggest() {
  const asked = $("q").value, low = asked.toLowerCase(), box = $("found");
  box.replaceChildren();
  if (!asked) return;
  const rank = t => { const l = t.toLowerCase(); return t === asked ? 0 : l.trim() === low.trim() ? 1 : l.trimStart().startsWith(low.trim()) ? 2 : 3; };
  const hits = [];
  for (const t of data.tokens) { const r = rank(t); if (r < 3 || low.trim() && t.toLowerCase().includes(low)) hits.push([r, hits.length, t]); }
  hits.sort((a, b) => a[0] - b[0] || a[1] - b[1]);                     // equal ones: the more stable first
  for (const h of hits.slice(0, 24)) box.append(tokenButton(h[2], false));
  box.append(element("span", hits.length > 24 ? " and " + (hits.length - 24).toLocaleString("en") + " more" : hits.length ? "" : "no common token has this in it", "note"));
}
function choose(text) {
  chosen = text; location.hash = "t=" + encodeURIComponent(text);
  showToken(); suggest(); showPrompts();
}
function showToken() {
  const box = $("token"); box.replaceChildren();
  if (chosen === null) return;
  const i = position.get(chosen), models = Object.keys(data.neighbors), lists = models.map(m => data.neighbors[m][i]);
  box.append(element("h2", shown(chosen)), element("p", describe(i) + (data.J ? " (1 is the most stable)" : "")));
  showEffects(box);
  if (!models.length || lists.some(l => !l)) { box.append(element("p", models.length ? "Neighbours are here for the " + Math.min(...models.map(m => data.neighbors[m].length)).toLocaleString("en") + " most stable tokens only." : "No neighbours were given to this page.", "note")); return; }
  const common = new Set(lists[0].filter(p => lists.every(l => l.includes(p)))), row = element("div", undefined, "columns");
  models.forEach((m, j) => {
    const part = element("div"), list = element("ol");
    for (const p of lists[j]) { const li = element("li"); li.append(tokenButton(data.tokens[p], models.length > 1 && common.has(p))); list.append(li); }
    part.append(element("h3", "Nearest in " + m), list); row.append(part);
  });
  box.append(row);
  if (models.length > 1) box.append(element("p", "\u25cf: among the nearest in every model (" + common.size + " of " + lists[0].length + ").", "note"));
}
function showEffects(box) {
  const parts = data.effects.filter(e => e.values[chosen]);
  if (!parts.length) { if (data.effects.length) box.append(element("p", "What this token does alone was not measured.", "note")); return; }
  for (const e of parts) {
    const table = element("table"), head = element("tr"), row = element("tr"), all = Object.values(e.values);
    e.models.forEach((m, j) => {
      const own = e.values[chosen][j], above = all.filter(v => v[j] > own).length;
      head.append(element("th", m));
      row.append(element("td", (own > 0 ? "+" : "") + own.toFixed(2).replace("-", "\u2212") + ", place " + (above + 1).toLocaleString("en") + " of " + all.length.toLocaleString("en")));
    });
    table.append(head, row);
    const wide = element("div", undefined, "wide"); wide.append(table);
    box.append(element("h3", "Alone before a text: " + e.name), wide, element("p", e.unit + "; place 1 has the most", "note"));
  }
}
function showPrompts() {
  const keep = data.prompts.filter(p => ["task", "source", "row", "method", "steps", "seed"].every(k => !$(k).value || String(p[k]) === $(k).value) && (!$("using").checked || chosen === null || p.tokens.includes(chosen)));
  $("count").textContent = keep.length + " of " + data.prompts.length + " prompts" + (chosen !== null ? "; " + data.prompts.filter(p => p.tokens.includes(chosen)).length + " use " + shown(chosen) : "");
  const body = $("prompts"); body.replaceChildren();
  for (const p of keep) {
    const tr = element("tr"), cell = element("td"), scores = element("td", undefined, "scores");
    for (const k of ["task", "source", "row", "method", "steps", "seed"]) tr.append(element("td", p[k] === null ? "" : String(p[k])));
    for (const t of p.tokens) cell.append(tokenButton(t, false));
    for (const [k, v] of Object.entries(p.scores)) scores.append(element("div", (100*v).toFixed(1) + " % " + k));
    tr.append(cell, scores); body.append(tr);
  }
}
for (const k of ["task", "source", "row", "method", "steps", "seed"]) {
  const values = [...new Set(data.prompts.map(p => String(p[k])))].sort((a, b) => a.localeCompare(b, "en", {numeric: true}));
  $(k).append(...["", ...values].map(v => { const o = element("option", v || "all"); o.value = v; return o; }));
  $(k).onchange = showPrompts;
}
$("using").onchange = showPrompts; $("q").oninput = suggest;
function start() {
  let asked = null;
  try { asked = decodeURIComponent((location.hash.match(/^#t=(.*)$/) || [])[1] || ""); } catch (e) { }
  chosen = position.has(asked) ? asked : null;
  showToken(); suggest(); showPrompts();
}
addEventListener("hashchange", start); start();
