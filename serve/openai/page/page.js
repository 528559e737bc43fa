"use strict";

const byId = (id) => document.getElementById(id);
const FIGURES_MS = 1000;
const MODELS_MS = 5000;
const POINTS = 120;

const state = { models: [], model: null, messages: [], request: null, speeds: [] };

function headers() {
  const key = byId("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function get(path) {
  const response = await fetch(path, { headers: headers() });
  const content = await response.json();
  if (!response.ok) throw new Error(content.error.message);
  return content;
}

// The models that the server has now. The one that was chosen stays chosen while it is there.
async function connect() {
  try {
    state.models = (await get("v1/models")).data;
    const names = state.models.map((model) => model.id);
    const chosen = byId("model");
    if (names.join("\n") !== [...chosen.options].map((option) => option.value).join("\n")) {
      chosen.replaceChildren(...names.map((name) => new Option(name, name, false, name === state.model?.id)));
      chosen.disabled = names.length < 2;
    }
    choose(chosen.value);
    say("", false);
  } catch (error) {
    say(error.message, true);
  }
}

function choose(name) {
  if (state.model?.id !== name) {
    state.speeds = [];
    draw(state.speeds);
  }
  state.model = state.models.find((model) => model.id === name);
  byId("context").textContent = `context of ${state.model.max_model_len} tokens`;
  byId("live-model").textContent = name;
  byId("prompt-label").textContent = state.model.has_chat_template ? "Message" : "Text to go on from";
}

function say(text, isWrong) {
  byId("state").textContent = text;
  byId("state").className = isWrong ? "wrong" : "";
}

function options() {
  const values = {};
  for (const input of byId("options").elements) {
    if (input.value === "") continue;
    values[input.name] = input.type === "number" ? Number(input.value) : input.value;
  }
  return values;
}

function show(kind, text) {
  const item = document.createElement("li");
  item.className = kind;
  item.textContent = text;
  byId("messages").append(item);
  item.scrollIntoView({ block: "end" });
  return item;
}

function caption(name) {
  const element = document.createElement("span");
  element.className = "by";
  element.textContent = name;
  return element;
}

function setBusy(isBusy) {
  byId("send").disabled = isBusy;
  byId("stop").disabled = !isBusy;
}

// The events of a stream: each line that begins with "data: " is one.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function generate(model, body, onText) {
  const path = model.has_chat_template ? "v1/chat/completions" : "v1/completions";
  state.request = new AbortController();
  const response = await fetch(path, {
    method: "POST",
    headers: headers(),
    body: JSON.stringify({ model: model.id, stream: true, stream_options: { include_usage: true }, ...body }),
    signal: state.request.signal,
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  let usage = null;
  for await (const event of events(response)) {
    usage = event.usage ?? usage;
    for (const choice of event.choices) onText(choice.text ?? choice.delta.content ?? "");
  }
  return usage;
}

async function send() {
  const prompt = byId("prompt").value;
  if (!prompt || state.request) return;
  if (!state.model) await connect();
  const model = state.model;
  if (!model) return;
  show("user", prompt);
  const messages = [...state.messages, { role: "user", content: prompt }];
  const answer = show("assistant open", "");
  if (state.models.length > 1) answer.append(caption(model.id));
  const shown = answer.appendChild(document.createTextNode(model.has_chat_template ? "" : prompt));
  let text = "";
  let waiting = "";
  // Tokens may come faster than the page is painted: what has come is shown once a frame.
  const paint = () => {
    shown.appendData(waiting);
    waiting = "";
    answer.scrollIntoView({ block: "end" });
  };
  const started = performance.now();
  let first = null;
  setBusy(true);
  byId("prompt").value = "";
  byId("result").textContent = "";
  try {
    const body = { ...options(), ...(model.has_chat_template ? { messages } : { prompt }) };
    const usage = await generate(model, body, (piece) => {
      if (piece && first === null) first = performance.now() - started;
      text += piece;
      if (!waiting && piece) requestAnimationFrame(paint);
      waiting += piece;
    });
    const seconds = (performance.now() - started) / 1000;
    byId("result").textContent =
      `${usage.prompt_tokens} tokens in, ${usage.completion_tokens} out in ${seconds.toFixed(1)} s` +
      (first === null ? "" : `, first text after ${Math.round(first)} ms`);
  } catch (error) {
    if (error.name !== "AbortError") show("error", error.message);
  } finally {
    if (waiting) paint();
    answer.className = "assistant";
    state.messages = [...messages, { role: "assistant", content: text }];
    state.request = null;
    setBusy(false);
    byId("prompt").focus();
  }
}

function draw(speeds) {
  const most = Math.max(1, ...speeds);
  const step = 240 / (POINTS - 1);
  const points = speeds.map((speed, i) => `${(240 - (speeds.length - 1 - i) * step).toFixed(1)} ${(58 - (speed / most) * 54).toFixed(1)}`);
  document.querySelector("#speed path").setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
}

function count(value) {
  return value === undefined || value === null ? "–" : String(Math.round(value));
}

async function refresh() {
  const chosen = state.model?.id;
  if (chosen === undefined) return;
  try {
    const figures = await get(`figures?model=${encodeURIComponent(chosen)}`);
    if (state.model.id !== chosen) return;
    const model = figures.model;
    state.speeds = [...state.speeds, figures.tokens_per_second].slice(-POINTS);
    draw(state.speeds);
    byId("figure-speed").textContent = figures.tokens_per_second.toFixed(1);
    byId("figure-first").textContent = figures.first_token_ms === null ? "–" : `${figures.first_token_ms.toFixed(0)} ms`;
    byId("figure-open").textContent = count(figures.open_requests);
    byId("figure-batch").textContent = count(model.running);
    byId("figure-waiting").textContent = count(model.waiting);
    const total = model.cache_blocks;
    byId("figure-cache").textContent = total ? `${((100 * model.cache_blocks_used) / total).toFixed(0)} %` : "–";
    if (byId("state").className === "wrong") await connect();
  } catch (error) {
    say(error.message, true);
  }
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
byId("stop").addEventListener("click", () => state.request?.abort());
byId("clear").addEventListener("click", () => {
  state.messages = [];
  byId("messages").replaceChildren();
  byId("result").textContent = "";
});
for (const id of ["options", "access-form"]) byId(id).addEventListener("submit", (event) => event.preventDefault());
byId("key").value = sessionStorage.getItem("key") ?? "";
byId("key").addEventListener("change", () => {
  sessionStorage.setItem("key", byId("key").value);
  connect();
});

byId("model").addEventListener("change", () => {
  choose(byId("model").value);
  refresh();
});

connect().then(refresh);
setInterval(refresh, FIGURES_MS);
setInterval(connect, MODELS_MS);
