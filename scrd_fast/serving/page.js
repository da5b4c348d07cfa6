// SPDX-License-Identifier: Apache-2.0
"use strict";
const at = id => document.getElementById(id);
let token = "", last = null, answer = null, sending = 0;

const say = (text, bad = false) => { at("state").textContent = text; at("state").className = bad ? "bad" : ""; };
const digits = value => value == null ? "unknown" : Number(value).toPrecision(4);
const percent = value => `${(100 * value).toFixed(1)} %`;

async function send(file) {
  const mine = ++sending;
  last = file;
  at("result").hidden = true;
  say("The image is being scored …");
  const form = new FormData();
  form.append("file", file);
  let response, content;
  try {
    response = await fetch("/score?overlay=true", { method: "POST", body: form, headers: token ? { Authorization: `Bearer ${token}` } : {} });
    content = await response.json();
  } catch {
    if (mine === sending) say("The service gives no answer.", true);
    return;
  }
  if (mine !== sending) return;  // another image was chosen meanwhile
  at("key").hidden = response.status !== 401;
  if (response.ok) return show(content);
  say(response.status === 401 && token === "" ? "" : content.detail, response.status !== 401 || token !== "");
  if (response.status === 401) at("token").focus();
}

function show(content) {
  answer = content;
  say("");
  at("result").hidden = false;
  at("pick").hidden = content.images.length < 2;
  at("frame").max = content.images.length - 1;
  at("frame").value = 0;
  at("legend").hidden = content.map_scale === null;
  if (content.map_scale) [at("low").textContent, at("high").textContent] = content.map_scale.map(digits);
  draw(0);
}

function draw(number) {
  const one = answer.images[number];
  at("number").textContent = `${number + 1} of ${answer.images.length}`;
  at("picture").hidden = one.overlay === null;
  at("picture").src = one.overlay ? `data:image/png;base64,${one.overlay}` : "data:,";
  at("picture").alt = one.peak ? `The image with its anomaly map; its largest value is at row ${one.peak[0]}, column ${one.peak[1]}` : "";
  const decision = one.error ?? one.decision ?? "No decision: the model has no calibration.";
  at("decision").textContent = decision[0].toUpperCase() + decision.slice(1);
  at("decision").className = one.decision ?? "";
  const numbers = {
    [`score (${answer.score_name})`]: digits(one.score),
    "threshold": digits(answer.threshold),
    "percentile": one.percentile === null ? "unknown" : `${percent(one.percentile)} of normal images score no higher`,
    "false alarms": answer.expected_fpr === null ? "unknown" : `${percent(answer.expected_fpr)} of normal images expected`,
    "size": one.height ? `${one.width} × ${one.height} pixels` : "unknown",
    "largest at": one.peak ? `row ${one.peak[0]}, column ${one.peak[1]}` : "unknown",
    "model": answer.model_sha256.slice(0, 12),
    "calibration": answer.calibration ?? "none",
  };
  at("numbers").replaceChildren(...Object.entries(numbers).flatMap(([name, value]) => [text("dt", name), text("dd", value)]));
  at("flags").replaceChildren(...one.flags.map(flag => text("li", flag)));
}

function text(tag, content) {
  const element = document.createElement(tag);
  element.textContent = content;
  return element;
}

at("file").addEventListener("change", event => { if (event.target.files.length) send(event.target.files[0]); event.target.value = ""; });
at("frame").addEventListener("input", event => draw(Number(event.target.value)));
at("key").addEventListener("submit", event => { event.preventDefault(); token = at("token").value.trim(); if (last) send(last); });
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, event => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) send(event.dataTransfer.files[0]);
  });
}
