// The review page: loads candidates, plays them, collects answers. Text from data is only ever set as textContent.

import { Signals } from "./signals.js";

const QUALITY = ["unusable", "low", "acceptable", "high"];
const CONFIDENCE = ["low", "medium", "high"];
const QUALITY_KEYS = "0123", CONFIDENCE_KEYS = "qwe";
const SPEEDS = [1, 0.5, 0.25];
const AT_HAND = 6; // clips kept in memory: the next one is fetched while this one is looked at

const $ = (id) => document.getElementById(id);

const state = {
  annotator: "", queue: [], at: 0, clip: null, images: new Map(), answer: null,
  frame: 0, speed: 0, paused: false, context: true, busy: false,
};
const waiting = []; // keys pressed while the server was at work
const loaded = new Map(); // candidate -> promise of {clip, images}
const signals = new Signals($("signals"), (frame) => { pause(true); state.frame = frame; });

// -- talking to the server

async function call(path, body) {
  const request = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const reply = await fetch(path, request).catch(() => { throw new Error("The server does not answer; is it still running?"); });
  const answer = await reply.json().catch(() => ({ detail: `The server failed (${reply.status}); its log says why.` }));
  if (!reply.ok) throw new Error(answer.detail);
  return answer;
}

function load(key) {
  if (!loaded.has(key)) {
    const promise = fetch_clip(key);
    promise.catch(() => loaded.delete(key)); // so that it may be tried again
    loaded.set(key, promise);
    if (loaded.size > AT_HAND) loaded.delete(loaded.keys().next().value);
  }
  return loaded.get(key);
}

async function fetch_clip(key) {
  const path = `/api/candidates/${encodeURIComponent(key)}`;
  const clip = await call(`${path}?annotator=${encodeURIComponent(state.annotator)}`);
  const views = await Promise.all(clip.views.map(async (view) => {
    const encoded = await call(`${path}/images/${encodeURIComponent(view)}`);
    const images = await Promise.all(Object.entries(encoded).map(async ([frame, data]) => {
      const image = new Image();
      image.src = `data:image/jpeg;base64,${data}`;
      await image.decode();
      return [Number(frame), image];
    }));
    return [view, new Map(images)];
  }));
  return { clip, images: new Map(views) };
}

// -- showing

function say(text, wrong = false) {
  $("message").textContent = text;
  $("message").classList.toggle("wrong", wrong);
}

function attempt(action) {
  return async (...given) => {
    if (state.busy) return;
    state.busy = true;
    try {
      await action(...given);
    } catch (error) {
      waiting.length = 0; // what was typed ahead was meant for the next clip
      say(error.message, true);
    } finally {
      state.busy = false;
      while (!state.busy && waiting.length) KEYS[waiting.shift()]();
    }
  };
}

async function show(at, answer) {
  if (at < 0 || at >= state.queue.length) return say(at < 0 ? "This is the first clip." : "This is the last clip.");
  Object.assign(state, { at, clip: null });
  $("work").classList.add("loading");
  $("place").textContent = `${at + 1} of ${state.queue.length}`;
  $("key").textContent = state.queue[at];
  const { clip, images } = await load(state.queue[at]);
  const before = answer ?? clip.answer ?? { quality: null, confidence: null, start: clip.start, end: clip.end, comment: "" };
  Object.assign(state, { clip, images, frame: clip.first, answer: { ...before } });
  $("work").classList.remove("loading");
  describe(clip);
  show_views();
  signals.draw(clip, state.answer);
  show_answer();
  pause(false);
  if (at + 1 < state.queue.length) load(state.queue[at + 1]).catch(() => {}); // told when its turn comes
}

function describe(clip) {
  $("instruction").textContent = clip.instruction;
  $("primitive").textContent = clip.primitive;
  $("status").textContent = clip.status;
  $("task").textContent = clip.task_instruction ? `${clip.task_instruction} (${clip.task})` : clip.task;
  $("score").textContent = `${clip.scores.rules} of 3`;
  const fit = clip.scores.grounding;
  $("grounding").textContent =
    fit === null ? "not asked" : `${fit.toFixed(2)}, above ${Math.round(100 * clip.grounded_below)} % of the candidates`;
  $("reasons").replaceChildren(...clip.reasons.map((reason) => Object.assign(document.createElement("li"), { textContent: reason })));
}

function show_views() {
  $("views").replaceChildren(...state.clip.views.map((view) => {
    const figure = document.createElement("figure");
    const canvas = document.createElement("canvas");
    const [image] = state.images.get(view).values();
    Object.assign(canvas, { width: image.naturalWidth, height: image.naturalHeight });
    canvas.dataset.view = view;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `the clip seen by ${view}`);
    figure.append(canvas, Object.assign(document.createElement("figcaption"), { textContent: view }));
    return figure;
  }));
}

function show_answer() {
  const { clip, answer } = state;
  for (const name of ["quality", "confidence"]) {
    [...$(name).children].forEach((button, value) => button.setAttribute("aria-pressed", String(answer[name] === value)));
  }
  for (const name of ["start", "end"]) {
    const moved = answer[name] - clip[name];
    $(name).textContent = `${answer[name]}${moved ? ` (${moved > 0 ? "+" : ""}${moved})` : ""}`;
  }
  $("span-text").textContent = `${answer.end - answer.start} frames, ${((answer.end - answer.start) / clip.fps).toFixed(2)} s`;
  $("comment").value = answer.comment;
  signals.move_span(answer);
}

function show_progress({ mine, all }) {
  for (const [id, part, name] of [["mine", mine, "mine"], ["all", all, "all"]]) {
    Object.assign($(id), { max: Math.max(part.total, 1), value: part.done });
    $(`${id}-text`).textContent = `${name} ${part.done} / ${part.total}`;
  }
}

let drawn_at = 0;
function tick(now) {
  const passed = Math.min(now - drawn_at, 100) / 1000;
  drawn_at = now;
  if (state.clip) {
    const { clip, answer } = state;
    const from = state.context ? clip.first : Math.min(Math.max(answer.start, clip.first), clip.last - 1);
    const to = state.context ? clip.last : Math.min(answer.end, clip.last);
    if (!state.paused) {
      state.frame += passed * clip.fps * SPEEDS[state.speed];
      if (state.frame >= to || state.frame < from) state.frame = from;
    }
    draw_frame(Math.floor(state.frame));
  }
  requestAnimationFrame(tick);
}

function draw_frame(frame) {
  const { clip, answer, images } = state;
  const shown = frame - (frame % clip.stride);
  for (const canvas of $("views").querySelectorAll("canvas")) {
    canvas.classList.toggle("outside", frame < answer.start || frame >= answer.end);
    if (canvas.dataset.frame === String(shown)) continue;
    canvas.getContext("2d").drawImage(images.get(canvas.dataset.view).get(shown), 0, 0);
    canvas.dataset.frame = shown;
  }
  $("clock").textContent = `frame ${frame}, ${(frame / clip.fps).toFixed(2)} s`;
  signals.move_head(state.frame);
}

// -- answering

function choose(name, value) {
  if (!state.clip) return;
  state.answer[name] = value;
  say("");
  show_answer();
}

function nudge(name, direction) {
  // By whole images: a clip starts where one is. Never out of what is shown, never past the other end.
  const { clip, answer } = state;
  if (!clip) return;
  const step = clip.stride;
  const to = direction < 0 ? Math.ceil(answer[name] / step) * step - step : Math.floor(answer[name] / step) * step + step;
  if (name === "start" && to >= clip.first && to < answer.end) answer.start = to;
  if (name === "end" && to > answer.start) answer.end = Math.min(to, clip.last);
  show_answer();
}

const save = attempt(async () => {
  const { clip, answer } = state;
  if (!clip) return;
  if (answer.quality === null) return say("Choose a quality first: 0, 1, 2 or 3.", true);
  if (answer.confidence === null) return say("Choose how sure you are first: q, w or e.", true);
  const { quality, confidence, start, end } = answer;
  const comment = $("comment").value.trim();
  const sent = { candidate: clip.key, annotator: state.annotator, quality, confidence, start, end, comment };
  const { progress } = await call("/api/scores", sent);
  clip.answer = sent;
  show_progress(progress);
  if (state.at + 1 === state.queue.length) return say("Saved. This was the last clip of the queue.");
  say(`Saved ${clip.key}: ${QUALITY[quality]}.`);
  await show(state.at + 1);
});

const undo = attempt(async () => {
  const { score, progress } = await call("/api/undo", { annotator: state.annotator });
  show_progress(progress);
  if (score === null) return say("There is nothing to take back.");
  loaded.delete(score.candidate); // an older answer may count again
  const at = state.queue.indexOf(score.candidate);
  say(`Took the answer for ${score.candidate} back.`);
  if (at >= 0) await show(at, score);
});

const go = attempt((by) => { say(""); return show(state.at + by); });

function pause(on) {
  state.paused = on;
  $("pause").lastElementChild.textContent = on ? "play" : "pause";
}

function change_speed() {
  state.speed = (state.speed + 1) % SPEEDS.length;
  $("speed").lastElementChild.textContent = ["1x", "1/2x", "1/4x"][state.speed];
}

function toggle_context() {
  state.context = !state.context;
  $("context").setAttribute("aria-pressed", String(state.context));
}

const KEYS = {
  ...Object.fromEntries([...QUALITY_KEYS].map((key, value) => [key, () => choose("quality", value)])),
  ...Object.fromEntries([...CONFIDENCE_KEYS].map((key, value) => [key, () => choose("confidence", value)])),
  Enter: save, " ": save, u: undo, "?": () => $("help").showModal(),
  j: () => go(1), ArrowRight: () => go(1), ArrowDown: () => go(1),
  k: () => go(-1), ArrowLeft: () => go(-1), ArrowUp: () => go(-1),
  "[": () => nudge("start", -1), "]": () => nudge("start", 1), ",": () => nudge("end", -1), ".": () => nudge("end", 1),
  p: () => pause(!state.paused), s: change_speed, c: toggle_context, m: () => $("comment").focus(),
};

document.addEventListener("keydown", (event) => {
  const target = event.target;
  if ($("work").hidden || $("help").open || event.ctrlKey || event.metaKey || event.altKey) return;
  if (target === $("comment")) {
    if (event.key === "Escape") target.blur();
    return;
  }
  if (target.tagName === "BUTTON" && (event.key === "Enter" || event.key === " ")) return; // presses that button
  if (!Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  if (state.busy && waiting.at(-1) === "m") return; // the words of a comment are no answers
  if (state.busy) waiting.push(event.key);
  else KEYS[event.key]();
});

document.addEventListener("click", (event) => {
  // A button that was clicked must not swallow the next Enter; one that was reached by Tab keeps the focus.
  const button = event.target.closest("button");
  if (button && event.detail > 0) button.blur();
});

function add_choices() {
  for (const [name, words, keys] of [["quality", QUALITY, QUALITY_KEYS], ["confidence", CONFIDENCE, CONFIDENCE_KEYS]]) {
    $(name).append(...words.map((word, value) => {
      const button = Object.assign(document.createElement("button"), { type: "button" });
      button.append(Object.assign(document.createElement("kbd"), { textContent: keys[value] }), ` ${word}`);
      button.addEventListener("click", () => choose(name, value));
      return button;
    }));
  }
}

function add_actions() {
  const actions = {
    save, undo, previous: () => go(-1), next: () => go(1), pause: () => pause(!state.paused), speed: change_speed,
    context: toggle_context, "help-open": () => $("help").showModal(), who: leave,
  };
  for (const [id, action] of Object.entries(actions)) $(id).addEventListener("click", () => action());
  for (const button of document.querySelectorAll("[data-nudge]")) {
    const [name, direction] = button.dataset.nudge.split(" ");
    button.addEventListener("click", () => nudge(name, Number(direction)));
  }
  $("comment").addEventListener("input", () => { if (state.answer) state.answer.comment = $("comment").value; });
  window.addEventListener("resize", () => { if (state.clip) signals.draw(state.clip, state.answer); });
}

// -- coming and going

async function enter(name) {
  state.annotator = name;
  const { queue, progress } = await call(`/api/queue?annotator=${encodeURIComponent(name)}`);
  state.queue = queue;
  localStorage.setItem("annotator", name);
  $("who").textContent = name;
  for (const [id, hidden] of [["login", true], ["work", false], ["meters", false], ["who", false]]) $(id).hidden = hidden;
  show_progress(progress);
  if (!queue.length) return say("Nothing is assigned to you yet.");
  if (progress.mine.done === progress.mine.total) say("All of yours are reviewed; look through them again, or close the page.");
  await first();
}

const first = attempt(() => show(0));

function leave() {
  localStorage.removeItem("annotator");
  location.reload();
}

async function start() {
  add_choices();
  add_actions();
  const names = await call("/api/annotators");
  $("names").replaceChildren(...names.map((name) => new Option(name, name)));
  $("names").hidden = names.length === 0;
  $("name").hidden = $("name").disabled = document.querySelector("label[for=name]").hidden = names.length > 0;
  $("login").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = names.length ? $("names").value : $("name").value.trim();
    if (name) enter(name).catch((error) => { $("work").hidden = false; say(error.message, true); });
  });
  requestAnimationFrame(tick);
  const known = localStorage.getItem("annotator");
  if (known && (!names.length || names.includes(known))) return enter(known);
  $("login").hidden = false;
  (names.length ? $("names") : $("name")).focus();
}

start().catch((error) => { $("work").hidden = false; say(error.message, true); });
