"use strict";
// Texts of documents and of models reach the page through textContent only. Nothing is ever parsed as markup.

const main = document.getElementById("main");
const filters = document.getElementById("filters");
const OUTCOMES = ["answered", "failed", "interrupted", "running", "unasked"];
const COLORS = 6;
const MAX_FILLED_DAYS = 400;
const isFramed = window.parent !== window;
const root = window.location.pathname.replace(/\/[^/]*\/$/, "");
let latest = 0;

/* --- elements --- */

function make(space, tag, attributes, children) {
  const element = space ? document.createElementNS(space, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined) continue;
    if (child instanceof Node) element.appendChild(child);
    else element.appendChild(document.createTextNode(String(child)));
  }
  return element;
}

const el = (tag, attributes, ...children) => make(null, tag, attributes, children);
const svg = (tag, attributes, ...children) => make("http://www.w3.org/2000/svg", tag, attributes, children);

/* --- texts --- */

const count = (value) => (value === null || value === undefined ? "–" : Math.round(value).toLocaleString());
const when = (value) => (value ? new Date(value).toLocaleString() : "–");

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${Math.round(seconds % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function pages(given) {
  if (!given.length || given[0] === null) return "";
  const [first, last] = [given[0], given[given.length - 1]];
  return first === last ? `page ${first}` : `pages ${first}–${last}`;
}

const tag = (outcome, text) => el("span", { class: `tag ${OUTCOMES.includes(outcome) ? outcome : "unasked"}` }, text || outcome);
const fact = (name, value) => (value === null || value === undefined || value === "" ? null : el("li", {}, `${name} `, el("b", {}, value)));

/* --- addresses: what is shown is in the part after # --- */

function state() {
  return new URLSearchParams(window.location.hash.slice(1));
}

function address(values) {
  const kept = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return `#${new URLSearchParams(kept)}`;
}

function tellAirflow() {
  // So that a reload of Airflow's page, or its copied address, leads to the same place.
  if (!isFramed) return;
  const { history, location } = window.parent;
  history.replaceState(history.state, "", location.pathname + location.search + window.location.hash);
}

function airflowLink(path, text) {
  const link = el("a", { href: `${root}${path}` }, text);
  link.addEventListener("click", (event) => {
    if (!isFramed) return;
    // A frame of Airflow must not navigate the window around it, but a link of that window may.
    event.preventDefault();
    const outer = window.parent.document.createElement("a");
    outer.href = link.href;
    outer.click();
  });
  return link;
}

/* --- data --- */

async function load(path, values) {
  const answer = await fetch(`${path}?${address(values).slice(1)}`, { credentials: "same-origin" });
  if (answer.status === 401) throw new Error("You are no longer logged in. Reload Airflow to log in again.");
  if (answer.status === 403) throw new Error("You may not read the XComs of this Dag. Ask an administrator of this Airflow for access.");
  if (answer.status === 404) throw new Error("This run has no task that asked LlamaCloud, or the run no longer exists.");
  if (!answer.ok) throw new Error(`Airflow's server reports an error (${answer.status}). Its log has the details.`);
  return answer.json();
}

/* --- the list --- */

function chosen(now) {
  return { dag_id: now.get("in") || "", since: now.get("since") || "", until: now.get("until") || "" };
}

function asQuery(choice) {
  const day = (text, plus) => {
    const date = new Date(`${text}T00:00:00`);
    date.setDate(date.getDate() + plus);
    return date.toISOString();
  };
  return {
    dag_id: choice.dag_id,
    since: choice.since && day(choice.since, 0),
    until: choice.until && day(choice.until, 1),
  };
}

function fillFilters(choice, dags) {
  const select = filters.elements.dag_id;
  const known = new Set([...dags, ...(choice.dag_id ? [choice.dag_id] : [])]);
  select.replaceChildren(el("option", { value: "" }, "All Dags"), ...[...known].sort().map((name) => el("option", { value: name }, name)));
  for (const name of ["dag_id", "since", "until"]) filters.elements[name].value = choice[name];
}

function runRow(run) {
  const cell = (label, value, kind) => el("td", { class: kind === undefined ? "number" : kind, "data-label": label }, value);
  const outcome = (name) => cell(name, run[name] ? el("span", { class: name }, count(run[name])) : "0");
  return el(
    "tr",
    {},
    el("td", { class: "name" }, el("a", { href: address({ dag_id: run.dag_id, run_id: run.run_id }) }, run.dag_id), el("div", { class: "muted" }, run.run_id)),
    cell("run after", when(run.run_after), ""),
    cell("run", run.state, ""),
    outcome("answered"),
    outcome("failed"),
    outcome("interrupted"),
    cell("tokens in", count(run.input_tokens)),
    cell("tokens out", count(run.output_tokens)),
    cell("duration", duration(run.seconds)),
  );
}

function runsTable(found) {
  const head = [["Dag and run"], ["Run after"], ["Run"], ["Answered", 1], ["Failed", 1], ["Interrupted", 1], ["Tokens in", 1], ["Tokens out", 1], ["Duration", 1]];
  return el(
    "table",
    { class: "runs" },
    el("thead", {}, el("tr", {}, head.map(([text, number]) => el("th", { scope: "col", class: number ? "number" : null }, text)))),
    el("tbody", {}, found.runs.map(runRow)),
  );
}

function pager(now, found, size) {
  const go = (offset) => () => {
    const next = state();
    next.set("offset", offset);
    window.location.hash = next.toString();
  };
  const offset = Number(now.get("offset") || 0);
  return el(
    "nav",
    { class: "pages", "aria-label": "Pages" },
    el("button", { type: "button", disabled: offset === 0, click: go(Math.max(0, offset - size)) }, "Newer"),
    el("button", { type: "button", disabled: found.next === null, click: go(found.next) }, "Older"),
    el("span", { class: "muted" }, found.runs.length ? `Runs ${offset + 1}–${offset + found.runs.length}` : ""),
  );
}

async function showList(now, turn) {
  const choice = chosen(now);
  const query = asQuery(choice);
  const found = await load("api/runs", { ...query, offset: now.get("offset") });
  if (turn !== latest) return;
  fillFilters(choice, found.dags);
  const charts = el("section", { class: "charts", "aria-label": "Charts" });
  const table = found.runs.length
    ? el("div", { class: "scroll" }, runsTable(found))
    : el("p", { class: "message muted" }, "No Dag run asked LlamaCloud in this period, or you may not read the XComs of those that did.");
  main.replaceChildren(charts, el("h2", {}, "Runs"), table, pager(now, found, 50));
  try {
    const perDay = await load("api/days", query);
    if (turn === latest) charts.replaceChildren(...drawCharts(perDay));
  } catch (problem) {
    // The list does not need the charts.
    if (turn === latest) charts.replaceChildren(el("p", { class: "message error", role: "alert" }, `The charts cannot be shown. ${problem.message}`));
  }
}

/* --- charts --- */

function stacked(days, series, valueOf) {
  const [width, height, left, bottom, top] = [640, 220, 44, 24, 10];
  const total = (day) => series.reduce((sum, one) => sum + valueOf(day, one), 0);
  const most = days.reduce((found, day) => Math.max(found, total(day)), 1);
  const step = (width - left) / days.length;
  const y = (value) => top + (height - top - bottom) * (1 - value / most);
  const marks = [0, most / 2, most].map((value) => [
    svg("line", { x1: left, x2: width, y1: y(value), y2: y(value) }),
    svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 }).format(value)),
  ]);
  const bars = days.map((day, index) => {
    let below = 0;
    const x = left + index * step + step * 0.15;
    return series.map((one) => {
      const value = valueOf(day, one);
      if (!value) return null;
      const bar = svg(
        "rect",
        { class: one.color, x, y: y(below + value), width: Math.min(step * 0.7, 48), height: Math.max(1, y(below) - y(below + value)) },
        svg("title", {}, `${day.day}, ${one.name}: ${count(value)}${one.detail ? one.detail(day) : ""}`),
      );
      below += value;
      return bar;
    });
  });
  const every = Math.ceil(days.length / 8);
  const labels = days.map((day, index) =>
    index % every ? null : svg("text", { x: left + index * step + step * 0.15, y: height - 6 }, day.day.slice(5)),
  );
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" }, marks, bars.flat(), labels);
}

function panel(title, days, series, valueOf) {
  const chart = stacked(days, series, valueOf);
  chart.setAttribute("aria-label", title);
  const rows = days.map((day) => el("tr", {}, el("th", { scope: "row" }, day.day), series.map((one) => el("td", { class: "number" }, count(valueOf(day, one))))));
  const head = el("tr", {}, el("th", { scope: "col" }, "Day (UTC)"), series.map((one) => el("th", { scope: "col", class: "number" }, one.name)));
  return el(
    "div",
    { class: "panel" },
    el("h2", {}, title),
    chart,
    el("ul", { class: "legend" }, series.map((one) => el("li", { class: one.color }, el("span", {}, one.name)))),
    el("details", {}, el("summary", {}, "As a table"), el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), el("tbody", {}, rows)))),
  );
}

function drawCharts(found) {
  if (!found.days.length) return [];
  const days = new Map();
  const put = (name) => days.has(name) || days.set(name, { day: name, rows: [] });
  const [first, last] = [new Date(found.days[0].day), new Date(found.days[found.days.length - 1].day)];
  // Days on which nothing was asked have their place, too, unless there are too many.
  if (last - first < MAX_FILLED_DAYS * 86_400_000) {
    for (const day = first; day <= last; day.setUTCDate(day.getUTCDate() + 1)) put(day.toISOString().slice(0, 10));
  }
  for (const row of found.days) {
    put(row.day);
    days.get(row.day).rows.push(row);
  }
  const tokens = new Map();
  for (const row of found.days) tokens.set(row.dag_id, (tokens.get(row.dag_id) || 0) + row.input_tokens + row.output_tokens);
  const names = [...tokens.keys()].sort((a, b) => tokens.get(b) - tokens.get(a));
  const own = names.length > COLORS ? names.slice(0, COLORS - 1) : names;
  const series = own.map((name, index) => ({ name, color: `c${index}`, dags: new Set([name]) }));
  if (own.length < names.length) series.push({ name: `${names.length - own.length} other Dags`, color: `c${COLORS - 1}`, dags: new Set(names.slice(own.length)) });
  const sum = (rows, valueOf) => rows.reduce((total, row) => total + valueOf(row), 0);
  const seen = OUTCOMES.filter((name) => sum(found.days, (row) => row[name])).map((name) => ({
    name,
    color: name,
    detail: (day) => day.rows.filter((row) => row[name]).map((row) => `\n${row.dag_id}: ${count(row[name])}`).join(""),
  }));
  const list = [...days.values()];
  return [
    panel("Questions per day", list, seen, (day, one) => sum(day.rows, (row) => row[one.name])),
    panel("Tokens per day and Dag", list, series, (day, one) => sum(day.rows.filter((row) => one.dags.has(row.dag_id)), (row) => row.input_tokens + row.output_tokens)),
    found.is_cut ? el("p", { class: "muted" }, "This period has more tasks than the charts can show. They cover only the newest ones.") : null,
  ].filter(Boolean);
}

/* --- a conversation --- */

function said(who, text, kind) {
  return el("div", { class: `said ${kind}` }, el("span", { class: "who" }, who), text);
}

function evidence(task) {
  if (!task.sources.length) return null;
  const tools = task.tools.map((tool) => `${tool.name} (${tool.results})`).join(" and ");
  const item = (source) =>
    el(
      "li",
      {},
      el("b", {}, source.file_name || source.index_id || "result"),
      [pages(source.pages), source.tool, source.score === null ? "" : `score ${source.score.toFixed(2)}`].filter(Boolean).map((text) => `, ${text}`),
      source.text ? el("p", { class: "muted" }, source.text) : null,
    );
  return el(
    "details",
    {},
    el("summary", {}, `${task.sources.length} ${task.sources.length === 1 ? "source" : "sources"}, from ${tools}`),
    el("ol", { class: "sources" }, task.sources.map(item)),
  );
}

function paid(task) {
  if (task.adopted === true) return "adopted (found in the session's history)";
  return task.adopted === false ? "paid" : null;
}

function facts(task) {
  const usage = task.usage;
  return el(
    "ul",
    { class: "facts" },
    fact("Answer:", paid(task)),
    fact("Tokens in", usage.total_input_tokens === null ? null : count(usage.total_input_tokens)),
    fact("Tokens out", usage.total_output_tokens === null ? null : count(usage.total_output_tokens)),
    fact("Model calls", usage.turns),
    fact("Turn", usage.duration_ms === null ? null : duration(usage.duration_ms / 1000)),
    fact("Task", task.seconds === null ? null : duration(task.seconds)),
    fact("Attempts", task.try_number),
    fact("Started", task.start_date && when(task.start_date)),
    fact("Session", task.session_id),
    fact("Indexes", task.index_ids.join(", ")),
    fact("Skipped indexes", task.skipped_index_ids.join(", ")),
  );
}

function batch(task) {
  const made = task.manifest;
  const line = (one) =>
    el(
      "tr",
      {},
      el("td", {}, one.id),
      el("td", {}, tag(one.outcome || "unasked")),
      el("td", { class: "name" }, said("Question", one.question || "–", "question"), one.answer ? said("Answer", one.answer, "answer") : null, one.error ? said("Error", one.error, "") : null, evidence(one)),
      el("td", { class: "number" }, count(one.usage.total_output_tokens)),
    );
  return [
    made ? el("ul", { class: "facts" }, Object.entries(made).map(([name, value]) => fact(name.replaceAll("_", " "), typeof value === "number" ? value.toLocaleString() : value))) : el("p", { class: "muted" }, "This batch has not returned a manifest."),
    task.results.length
      ? el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ["Id", "Outcome", "Question and answer", "Tokens out"].map((text, index) => el("th", { scope: "col", class: index === 3 ? "number" : null }, text)))), el("tbody", {}, task.results.map(line))))
      : made && made.output_path
        ? el("p", { class: "muted" }, "The results are in the file named above. This page does not read files.")
        : null,
  ];
}

function turn(task, dagId, runId) {
  const mapped = task.map_index >= 0;
  const path = `/dags/${encodeURIComponent(dagId)}/runs/${encodeURIComponent(runId)}/tasks/${encodeURIComponent(task.task_id)}${mapped ? `/mapped/${task.map_index}` : ""}`;
  const head = el("div", { class: "turn-head" }, el("h3", {}, mapped ? `${task.task_id} [${task.map_index}]` : task.task_id), tag(task.outcome, task.is_batch ? task.state : null), airflowLink(path, "Open the task"));
  const missing = "Airflow no longer has the question of this task ([core] num_dag_runs_to_retain_rendered_fields).";
  const body = task.is_batch
    ? batch(task)
    : [
        task.question === null ? el("p", { class: "muted" }, task.outcome === "unasked" ? "Nothing was asked." : missing) : said("Question", task.question, "question"),
        task.answer === null ? null : said("Answer", task.answer, "answer"),
        task.answer === null && task.outcome === "interrupted" ? el("p", { class: "interrupted" }, "The end of the turn was not seen. A retry looks for its answer before it asks again.") : null,
        evidence(task),
      ];
  return el("article", { class: "panel" }, head, body, facts(task));
}

async function showConversation(now, turnNumber) {
  const [dagId, runId] = [now.get("dag_id"), now.get("run_id")];
  const query = Object.fromEntries(["run_id", "task_id", "map_index", "offset"].map((name) => [name, now.get(name)]));
  const found = await load(`api/dags/${encodeURIComponent(dagId)}/conversation`, query);
  if (turnNumber !== latest) return;
  const all = address({ dag_id: dagId, run_id: runId });
  const whole = now.get("task_id") ? el("li", {}, el("a", { href: all }, "All questions of this run")) : null;
  const counted = found.next === null && !Number(now.get("offset") || 0) ? "" : " on this page";
  const more = found.next === null ? null : el("p", {}, el("a", { href: address({ ...query, dag_id: dagId, offset: found.next }) }, now.get("task_id") ? "More of this task" : "More tasks of this run"));
  const run = `/dags/${encodeURIComponent(dagId)}/runs/${encodeURIComponent(runId)}`;
  main.replaceChildren(
    el("h2", {}, dagId),
    el("ul", { class: "facts" }, el("li", {}, airflowLink(run, runId)), el("li", {}, el("a", { href: "#" }, "All runs")), whole, ...OUTCOMES.filter((name) => found.totals[name]).map((name) => fact(`${name}${counted}`, count(found.totals[name])))),
    ...found.tasks.map((task) => turn(task, dagId, runId)),
    ...(more ? [more] : []),
  );
}

/* --- look and start --- */

function followTheme() {
  // Airflow stores its colour mode, and marks its own document with it.
  const outer = isFramed ? window.parent.document.documentElement : null;
  const isSet = outer && (outer.classList.contains("dark") || outer.classList.contains("light"));
  let theme = null;
  if (isSet) theme = outer.classList.contains("dark") ? "dark" : "light";
  else theme = window.localStorage.getItem("theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

async function show() {
  const turnNumber = ++latest;
  const now = state();
  const isConversation = now.get("dag_id") && now.get("run_id");
  filters.hidden = Boolean(isConversation);
  main.setAttribute("aria-busy", "true");
  try {
    await (isConversation ? showConversation : showList)(now, turnNumber);
  } catch (problem) {
    if (turnNumber === latest) main.replaceChildren(el("p", { class: "message error", role: "alert" }, problem.message));
  }
  if (turnNumber === latest) main.removeAttribute("aria-busy");
}

filters.addEventListener("submit", (event) => {
  event.preventDefault();
  const given = new FormData(filters);
  window.location.hash = address({ in: given.get("dag_id"), since: given.get("since"), until: given.get("until") });
});
window.addEventListener("hashchange", () => {
  tellAirflow();
  show();
  main.focus({ preventScroll: true });
  window.scrollTo(0, 0);
});
window.addEventListener("storage", followTheme);
if (isFramed) {
  new MutationObserver(followTheme).observe(window.parent.document.documentElement, { attributes: true, attributeFilter: ["class"] });
  if (!window.location.hash && window.parent.location.hash) window.history.replaceState(null, "", window.parent.location.hash);
}
followTheme();
show();
