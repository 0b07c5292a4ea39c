// The list of videos: how far each is, what it shows, download and delete.

import { element, file, get, post, remove, save, trouble } from "/page/api.js";

const TICK = 1000;
const known = new Map(); // id to the item and the status it shows

export async function submit(body) {
  await post("/v1/videos", body);
  await refresh();
}

export async function refresh() {
  const page = await get("/v1/videos?limit=50");
  const ids = new Set(page.data.map((video) => video.id));
  for (const [id, { item, picture }] of known) {
    if (!ids.has(id)) {
      item.remove();
      if (picture) URL.revokeObjectURL(picture);
      known.delete(id);
    }
  }
  page.data.forEach((video, place) => put(video, place));
  element("none").hidden = page.data.length > 0;
  const waiting = page.data.filter((video) => ["queued", "in_progress"].includes(video.status)).length;
  element("queue").textContent = waiting ? `${waiting} not finished` : "";
}

function put(video, place) {
  const entry = known.get(video.id) ?? { item: document.createElement("li") };
  known.set(video.id, entry);
  const list = element("list");
  if (list.children[place] !== entry.item) list.insertBefore(entry.item, list.children[place] ?? null);
  const state = `${video.status} ${video.progress}`;
  if (entry.state === state) return;
  entry.state = state;
  const text = document.createElement("div");
  const title = document.createElement("p");
  title.textContent = video.prompt;
  const about = document.createElement("p");
  about.className = "hint";
  about.textContent = `${video.status.replace("_", " ")}, ${video.seconds} s, ${video.size}`;
  text.append(title, about);
  if (video.error) about.textContent += `: ${video.error.message}`;
  if (["queued", "in_progress"].includes(video.status)) text.append(bar(video));
  const row = document.createElement("div");
  row.className = "row";
  const path = `/v1/videos/${video.id}`;
  if (video.status === "completed") {
    row.append(
      button("Play", () => play(entry, path)),
      button("Download", () => save(`${path}/content`, `${video.id}.mp4`)),
    );
  }
  if (video.status === "failed") row.append(button("Try again", () => post(`${path}/retry`, {}).then(refresh)));
  row.append(button("Delete", () => remove(path).then(refresh)));
  text.append(row);
  entry.item.replaceChildren(entry.shown ?? blank(), text);
  if (video.status === "completed" && !entry.picture) picture(entry, path, video.prompt);
}

function bar(video) {
  const made = document.createElement("progress");
  made.max = 100;
  made.value = video.progress;
  made.setAttribute("aria-label", `${video.progress} % made`);
  return made;
}

function blank() {
  const place = document.createElement("div");
  place.className = "blank";
  return place;
}

function button(text, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.onclick = () => Promise.resolve(act()).catch((error) => trouble(error.message));
  return made;
}

async function picture(entry, path, prompt) {
  const shown = document.createElement("img");
  shown.alt = prompt;
  try {
    entry.picture = shown.src = await file(`${path}/content?variant=thumbnail`);
  } catch {
    return; // it was deleted meanwhile
  }
  entry.item.firstChild.replaceWith(shown);
  entry.shown = shown;
}

async function play(entry, path) {
  const shown = document.createElement("video");
  Object.assign(shown, { controls: true, loop: true, muted: true, playsInline: true, autoplay: true });
  shown.style.gridColumn = "1 / -1";
  shown.style.width = "100%";
  shown.src = await file(`${path}/content`);
  entry.item.querySelector("video")?.remove();
  entry.item.append(shown);
}

export function watch() {
  setInterval(() => {
    if (!document.hidden) refresh().catch((error) => trouble(error.message));
  }, TICK);
}

export const film = async (session) => save(`/v1/live/${session}/content`, `${session}.mp4`);
