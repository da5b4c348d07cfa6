// SPDX-License-Identifier: Apache-2.0
// The other views: studies, errors, facts of the run; and what must be known before any of it is believed.

const TABS = ["worklist", "studies", "errors", "run"];

function openTab(name) {
  for (const tab of TABS) {
    const chosen = tab === name;
    $(`tab-${tab}`).setAttribute("aria-selected", chosen);
    $(`tab-${tab}`).tabIndex = chosen ? 0 : -1;
    $(`panel-${tab}`).hidden = !chosen;
  }
}

function startTabs() {
  for (const tab of TABS) {
    const button = $(`tab-${tab}`);
    button.addEventListener("click", () => openTab(tab));
    button.addEventListener("keydown", (event) => {
      const open = TABS.filter((name) => !$(`tab-${name}`).hidden);
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      const next = open[(open.indexOf(tab) + by + open.length) % open.length];
      openTab(next);
      $(`tab-${next}`).focus();
      event.preventDefault();
    });
  }
  startStudies();
  startErrors();
  startRun();
}

function startStudies() {
  if (!data.studies) return;
  const { count, columns: lines } = data.studies;
  const paths = lines.path ?? [];
  $("tab-studies").hidden = false;
  $("tab-studies").textContent = `Studies ${whole.format(count)}`;
  const rule = lines.rule && lines.rule[0] ? ` The rule is ${lines.rule[0]}.` : "";
  const cut = paths.length < count ? ` The first ${whole.format(paths.length)} are listed.` : "";
  $("studies-told").textContent = `Most suspicious first, with the run's own decisions.${rule}${cut} Select one to see its pictures.`;
  const list = new VirtualList($("studies"), (position) => {
    const cell = (name) => (lines[name] ? lines[name][position] : "");
    const name = cell("study") || visible(cell("path"));
    const decision = ["abnormal", "normal"].includes(cell("decision")) ? cell("decision") : "";
    const [images, frames] = [Number(cell("inputs")), Number(cell("frames"))];
    return make("div", { className: "line study" },
      make("span", { className: "names" }, make("b", { dir: "ltr" }, visible(name)),
        make("span", { className: "quiet", dir: "ltr" },
          [counted(images, "file", "files"), counted(frames, "picture", "pictures"), cell("reason"), visible(cell("path"))].filter(Boolean).join(" · "))),
      make("span", { className: "score" }, make("b", {}, cell("score") === "" ? "–" : short(Number(cell("score")))),
        make("span", { className: "quiet" }, cell("percentile") ? `percentile ${short(100 * Number(cell("percentile")))}` : "")),
      make("span", { className: `badge ${decision}` }, decision || cell("status") || "no decision"));
  }, (position, how) => {
    if (how === "reach") return;
    if (lines.study[position]) filterBy("study", "study", lines.study[position]);
    else filterBy("path", "file", paths[position]);
  });
  list.set(paths.length, -1);
}

function startErrors() {
  const counts = Object.entries(data.run.errors ?? {}).sort((a, b) => b[1] - a[1]);
  const total = counts.reduce((sum, [, count]) => sum + count, 0);
  $("tab-errors").textContent = `Errors ${whole.format(total)}`;
  const byCode = new Map(counts.map(([code]) => [code, []]));
  for (let row = 0; row < data.rows; row += 1) {
    const error = word("error", row);
    if (error !== null) byCode.get(error.split(":", 1)[0])?.push(row);
  }
  const parts = counts.map(([code, count]) => {
    const rows = byCode.get(code);
    const lines = rows.slice(0, 200).map((row) => {
      const open = make("button", { type: "button", className: "link", dir: "ltr" }, visible(word("path", row)));
      open.addEventListener("click", () => filterBy("path", "file", word("path", row)));
      return make("li", {}, open, make("span", { className: "quiet" }, ` ${word("status", row)}: ${visible(word("error", row).slice(code.length + 2))}`));
    });
    const left = count - lines.length;
    return make("details", { open: counts.length < 4 },
      make("summary", {}, make("b", {}, visible(code)), ` ${counted(count, "picture or file", "pictures or files")}`),
      make("ul", {}, ...lines, left > 0 ? make("li", { className: "quiet" }, `and ${whole.format(left)} more, see results/ and worklist.csv`) : null));
  });
  $("panel-errors").append(...(parts.length ? parts : [make("p", { className: "quiet empty" }, "No errors: every file was read, and every picture has a score.")]));
}

function startRun() {
  const { run, calibration, decision, counts } = data;
  const facts = [
    ["run", run.id], ["started", run.started], ["state", run.finished ? "finished" : "not finished"],
    ["scrd_fast", run.version], ["score", run.score], ["model", run.model && `${run.model}… (SHA-256)`],
    ["inputs", run.inputs === null ? null : whole.format(run.inputs)],
    ["pictures", whole.format(counts.rows)],
    ["pictures by status", Object.entries(counts.status).map(([name, n]) => `${whole.format(n)} ${name}`).join(", ")],
    ["flags", Object.entries(run.flags ?? {}).map(([name, n]) => `${whole.format(n)} ${name}`).join(", ")],
    ["calibration", calibration && `${calibration.id}, ${counted(calibration.count, "normal image", "normal images")}${calibration.site ? `, site ${calibration.site}` : ""}`],
    ["threshold", decision && `${decision.threshold}${decision.fpr === null ? "" : `, for ${percent(decision.fpr)} false alarms`} (by ${run.decided_by})`],
    ["images per second", run.images_per_second],
    ["device", run.device],
  ];
  if (data.labels) {
    const found = data.labels;
    facts.push(["labels", `${whole.format(found.labels)}: ${whole.format(found.unmatched)} fit no input, ${whole.format(found.without_score)} of those that fit have no score; ${whole.format(found.unlabelled)} inputs have no label`]);
  }
  const rows = facts.filter(([, value]) => value !== null && value !== undefined && value !== "");
  $("panel-run").append(table(["This run", ""], rows.map(([name, value]) => [name, visible(String(value))])));
}

function notices() {
  const { run, calibration, counts, labels, drift } = data;
  const told = [];
  const tell = (kind, title, ...text) => told.push(make("p", { className: `notice ${kind}` }, make("b", {}, `${title} `), ...text));
  if (!run.finished) tell("bad", "The run is not finished.", `${counted(run.shards, "shard is", "shards are")} done, with ${counted(counts.rows, "picture", "pictures")}; counts and order will change.`);
  if (!calibration) tell("bad", "No calibration.", data.decision
    ? "The threshold was given by hand: no rate of false alarms and no percentiles are known."
    : "There are scores, but no decisions and no percentiles. `scrd-fast calibrate` makes one from normal images.");
  if (calibration && !calibration.reachable) tell("warn", "Few calibration images.", `${calibration.count} are too few to promise a rate of ${percent(calibration.fpr)}.`);
  const foreign = (run.flags ?? {})["foreign-calibration"];
  if (foreign) tell("bad", "Foreign calibration.", `It was made with another model or at another site: decisions and percentiles of ${counted(foreign, "picture", "pictures")} may be wrong. Calibrate anew.`);
  if (drift) tell("bad", "Drift.", `Pictures of this run are not like those that it was compared with: ${drift.map(visible).join("; ") || "see drift.json"}.`);
  if (data.listed < counts.scored) tell("warn", "Not all pictures are listed.", `The ${whole.format(data.listed)} with the highest scores of ${whole.format(counts.scored)} are; counts and histogram are of all. Between two steps of the slider, and below the listed scores, typed thresholds give counts marked ≈.`);
  const unscored = counts.rows - counts.scored;
  if (data.rows - data.listed < unscored) tell("warn", "Not all failures are listed.", `The first ${whole.format(data.rows - data.listed)} of ${whole.format(unscored)} pictures without a score are; the counts by code are of all.`);
  if (labels && labels.unmatched) tell("warn", "Labels that fit no input:", `${whole.format(labels.unmatched)} of ${whole.format(labels.labels)}.`);
  if (labels && !labels.auroc) tell("warn", "No ROC curve:", "not both labels have inputs with a score, or a package is missing.");
  if (run.hashed) tell("info", "Names are keyed hashes.", "The pictures in this page are not changed: they may show names.");
  $("notices").append(...told);
  const parts = [run.id && `run ${run.id}`, run.started && run.started.slice(0, 10), counted(counts.rows, "picture", "pictures"),
    calibration && `calibrated on ${counted(calibration.count, "normal", "normals")}${calibration.site ? ` of ${calibration.site}` : ""}`];
  $("facts").textContent = visible(parts.filter(Boolean).join(" · "));
}
