// The page put together: who asks, what is loaded, the first form.

import { element, get, key, trouble } from "/page/api.js";
import * as jobs from "/page/jobs.js";
import * as live from "/page/live.js";

let watching = false;

async function enter() {
  try {
    const [model] = (await get("/v1/models")).data;
    const { size, fps, router, live_seconds: longest } = model.arvid;
    element("model").textContent = `${model.id}: ${size.join("x")} at ${fps} frames a second, router ${router}`;
    element("length").max = String(model.arvid.seconds);
    element("door").hidden = true;
    longestLive = longest;
    trouble("");
    await jobs.refresh();
    if (!watching) jobs.watch();
    watching = true;
    live.rejoin();
  } catch (error) {
    if (error.status === 401) {
      element("door").hidden = false;
      element("model").textContent = "This server asks for a key.";
      if (key.get()) trouble(error.message);
    } else {
      element("model").textContent = error.message;
      setTimeout(enter, 1500);
    }
  }
}

let longestLive = 60;

function extras() {
  const lines = element("timeline").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const timeline = lines.map((line) => {
    const [, at, prompt] = line.match(/^([\d.]+)\s*[:,]?\s+(.+)$/) ?? [];
    if (prompt === undefined) throw new Error(`timeline: "${line}" is not a second and a prompt`);
    return { at: Number(at), prompt };
  });
  return { seed: Number(element("seed").value || 0), ...(timeline.length ? { timeline } : {}) };
}

element("door").onsubmit = (event) => {
  event.preventDefault();
  key.set(element("key").value.trim());
  element("key").value = "";
  enter();
};

element("begin").onsubmit = (event) => {
  event.preventDefault();
  try {
    live.begin({ prompt: element("prompt").value, seconds: longestLive, arvid: extras() });
  } catch (error) {
    trouble(error.message);
  }
};

element("submit").onclick = async () => {
  try {
    const body = { prompt: element("prompt").value, seconds: element("length").value, arvid: extras() };
    await jobs.submit(body);
    trouble("");
  } catch (error) {
    trouble(error.message);
  }
};

element("film").onclick = (event) => {
  event.preventDefault();
  if (live.session()) jobs.film(live.session()).catch((error) => trouble(error.message));
};

enter();
