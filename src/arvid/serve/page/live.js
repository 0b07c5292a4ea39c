// A live session: the socket, the player and the strip together.

import { element, key, trouble } from "/page/api.js";
import { Player } from "/page/player.js";
import { Strip } from "/page/strip.js";

const TICK = 250; // milliseconds between two words about the playhead
const RETRY = 1000;
const LEAD = 3;
const store = window.sessionStorage;

let socket = null;
let player = null;
let coming = null; // what the next binary message is
let marks = 0;
const asked = new Map();
const strip = new Strip(element("strip"), show, choose);
const video = element("video");

function show(told, text) {
  element("chosen").textContent = text;
  element("rewind").disabled = element("branch").disabled = told === null;
}

function choose(kind) {
  if (strip.selected < 0) return;
  const prompt = kind === "branch" ? element("next").value.trim() : "";
  const told = { type: kind, block: strip.selected };
  if (kind === "branch") Object.assign(told, prompt ? { prompt, how: element("how").value } : { seed: chance() });
  control(told);
}

const chance = () => crypto.getRandomValues(new Uint32Array(1))[0];

function send(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

export function control(message) {
  const id = String((marks += 1));
  asked.set(id, performance.now());
  send({ ...message, id });
}

export function begin(start) {
  end();
  store.removeItem("session");
  open({ ...start, lead: LEAD });
}

export function rejoin() {
  const session = store.getItem("session");
  if (session) open({ session, at: Number(store.getItem("playhead") ?? 0), lead: LEAD });
}

export function end() {
  if (!socket) return;
  send({ type: "stop" });
  leave();
}

function leave() {
  const old = socket;
  socket = null;
  old?.close();
  store.removeItem("session");
  player?.close();
  player = null;
  element("direct").hidden = true;
  element("idle").hidden = false;
}

function open(start) {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const opened = new WebSocket(`${scheme}://${location.host}/v1/live`);
  opened.binaryType = "arraybuffer";
  opened.onopen = () => opened.send(JSON.stringify({ type: "session.start", key: key.get(), ...start }));
  opened.onmessage = (event) => {
    if (socket !== opened) return;
    if (event.data instanceof ArrayBuffer) bytes(event.data);
    else heard(JSON.parse(event.data));
  };
  opened.onclose = () => {
    if (socket !== opened) return;
    socket = null;
    if (store.getItem("session")) setTimeout(() => { if (!socket) rejoin(); }, RETRY);
  };
  socket = opened;
}

function bytes(data) {
  player?.append(data);
  if (coming?.type === "video.block") strip.set(coming);
  coming = null;
}

const answers = {
  "session.created": (told) => {
    trouble("");
    store.setItem("session", told.session);
    player?.close();
    player = new Player(video, told.mime);
    document.querySelector(".screen").style.aspectRatio = `${told.width} / ${told.height}`;
    strip.clear();
    told.blocks.forEach((block) => strip.set(block));
    const at = Number(store.getItem("playhead") ?? 0);
    if (told.blocks.length && at) player.jump(at);
    element("idle").hidden = true;
    element("direct").hidden = false;
    element("receipts").replaceChildren();
    paused(told.paused);
  },
  "video.init": (told) => { coming = told; },
  "video.block": (told) => { coming = told; },
  "video.flush": (told) => {
    player.flush(told.second);
    strip.cut(told.block);
  },
  "control.receipt": (told) => {
    note(`${told.control}: block ${told.block} at ${told.second.toFixed(1)} s, ${waited(told.id)}`);
    if (told.control === "pause" || told.control === "play") paused(told.control === "pause");
    if (["rewind", "branch"].includes(told.control)) strip.select(-1);
  },
  "video.done": () => note("the session is as long as it may be; go back, or begin another"),
  "session.taken": () => { trouble("this session is watched elsewhere now"); leave(); },
  "session.closing": (told) => { if (told.why !== "stopped") trouble(`the session has ended: ${told.why}`); leave(); },
  error: (told) => {
    if (told.error.code === "not_found") store.removeItem("session");
    trouble(told.error.message);
    if (!told.id) leave();
  },
};

function heard(told) {
  answers[told.type]?.(told);
}

function note(text) {
  const line = document.createElement("li");
  line.textContent = text;
  element("receipts").prepend(line);
  while (element("receipts").children.length > 50) element("receipts").lastChild.remove();
}

function waited(id) {
  const since = asked.get(id);
  asked.delete(id);
  return since === undefined ? "" : `after ${Math.round(performance.now() - since)} ms`;
}

function paused(yes) {
  element("pause").setAttribute("aria-pressed", String(yes));
  element("pause").textContent = yes ? "Go on" : "Pause";
}

setInterval(() => {
  if (!socket || !player) return;
  const second = player.second;
  send({ type: "ack", second });
  store.setItem("playhead", String(second));
  strip.shown(second);
  const ahead = video.buffered.length ? video.buffered.end(video.buffered.length - 1) - second : 0;
  element("pace").textContent = `${second.toFixed(1)} s, ${Math.max(0, ahead).toFixed(1)} s ahead`;
}, TICK);

video.addEventListener("seeking", () => {
  if (player?.lacks(video.currentTime)) control({ type: "seek", second: video.currentTime });
});
video.addEventListener("pause", () => { if (player && !video.ended) player.stopped = true; });
video.addEventListener("play", () => { if (player) player.stopped = false; });

element("rewind").onclick = () => choose("rewind");
element("branch").onclick = () => choose("branch");
element("stop").onclick = end;
element("pause").onclick = () => {
  control({ type: element("pause").getAttribute("aria-pressed") === "true" ? "play" : "pause" });
};
element("change").onsubmit = (event) => {
  event.preventDefault();
  const prompt = element("next").value.trim();
  if (prompt) control({ type: "prompt", prompt, how: element("how").value, now: element("now").checked });
};
element("tau").oninput = () => { element("tau-value").textContent = Number(element("tau").value).toFixed(2); };
element("tau").onchange = () => control({ type: "knob", tau: Number(element("tau").value) });
element("fps").onchange = () => { if (element("fps").value) control({ type: "knob", fps: Number(element("fps").value) }); };
element("target").onclick = () => control({ type: "knob", router: "target" });

export const session = () => store.getItem("session");
