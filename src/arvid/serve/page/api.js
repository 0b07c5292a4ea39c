// Requests with the key of this page, and what goes wrong with them.

const store = window.sessionStorage;

export const key = { get: () => store.getItem("key") ?? "", set: (text) => store.setItem("key", text) };

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  if (options.body) headers["content-type"] = "application/json";
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  let message = `${answer.status} ${answer.statusText}`;
  try {
    message = (await answer.json()).error.message;
  } catch { /* it was no JSON: the status has to do */ }
  throw new Refused(answer.status, message);
}

export const get = async (path) => (await ask(path)).json();
export const post = async (path, body) => (await ask(path, { method: "POST", body: JSON.stringify(body) })).json();
export const remove = async (path) => (await ask(path, { method: "DELETE" })).json();

// A file as something an element can show: the key goes along, which a plain address could not do.
export const file = async (path) => URL.createObjectURL(await (await ask(path)).blob());

const places = new Map();

// A file that is fetched when somebody asks for it, and saved under a name.
export async function save(path, name) {
  const link = document.createElement("a");
  link.href = await file(path);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

export const element = (name) => {
  if (!places.has(name)) places.set(name, document.getElementById(name));
  return places.get(name);
};

export function trouble(message) {
  element("trouble").textContent = message;
  element("trouble").hidden = !message;
}
