// The page: draw, ask, edit, score, over the addresses that every client has. No library, nothing
// from elsewhere. Pictures live in this tab alone.

const $ = (id) => document.getElementById(id);
const SMALL = 128; // pixels below which a picture is shown as squares
let shown = null; // the picture that is worked on: {data, prompt, seed, how, score}
let key = sessionStorage.getItem("key") || "";
let going = null; // what can be stopped

// ------------------------------------------------------------------------------------- the server

async function asked(path, how = {}) {
  const headers = { ...(how.headers || {}) };
  if (key) headers.Authorization = `Bearer ${key}`;
  const reply = await fetch(path, { ...how, headers });
  if (reply.status === 401 && (await newKey())) return asked(path, how);
  if (reply.ok) return reply;
  let said = `${reply.status} ${reply.statusText}`;
  try { said = (await reply.json()).error.message; } catch { /* no JSON: the status says it */ }
  if (reply.status === 429) said += ` (try again in ${reply.headers.get("Retry-After") || "some"} s)`;
  throw new Error(said);
}

const json = (path, body, signal) => asked(path, {
  method: "POST", signal, body: JSON.stringify(body),
  headers: { "Content-Type": "application/json" },
});

function newKey() {
  const dialog = $("ask-key");
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => {
    key = $("key").value;
    if (dialog.returnValue === "ok") sessionStorage.setItem("key", key);
    done(dialog.returnValue === "ok" && key !== "");
  }, { once: true }));
}

async function* events(reply) { // of server-sent events their data, parsed
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find((line) => line.startsWith("data: "));
      if (!data || data === "data: [DONE]") continue;
      const found = JSON.parse(data.slice(6));
      if (found.error) throw new Error(found.error.message);
      yield found;
    }
  }
}

// -------------------------------------------------------------------------------------- the picture

const source = (data) => `data:image/png;base64,${data}`;

function show(one, partial = false) {
  const picture = $("picture");
  picture.onload = () => {
    picture.classList.toggle("small", picture.naturalWidth < SMALL);
    drawBoxes();
  };
  picture.src = one.url || source(one.data);
  picture.alt = one.prompt || "the picture";
  picture.hidden = false;
  $("empty").hidden = true;
  $("frame").classList.add("full");
  if (partial) { $("boxes").replaceChildren(); return; }
  shown = one;
  const size = one.seed === undefined ? "" : ` · seed ${one.seed}`;
  $("caption").textContent = `${one.prompt || "opened"}${size}${one.thought ? ` · thought: ${one.thought}` : ""}`;
  for (const which of document.querySelectorAll(".which")) which.textContent = one.prompt || "the opened picture";
  $("score").disabled = false;
  $("again").disabled = one.seed === undefined;
  $("save").href = picture.src;
  $("save").download = `${(one.prompt || "picture").replace(/[^a-z0-9]+/gi, "-").slice(0, 60)}-${one.seed ?? "0"}.png`;
  $("save").removeAttribute("aria-disabled");
  for (const button of $("history").querySelectorAll("button")) {
    button.setAttribute("aria-current", String(button.one === one));
  }
  scores();
}

function remember(one) {
  const item = document.createElement("li"), button = document.createElement("button");
  const image = document.createElement("img"), words = document.createElement("span");
  button.type = "button";
  button.one = one;
  image.src = one.url || source(one.data);
  image.alt = "";
  image.onload = () => image.classList.toggle("small", image.naturalWidth < SMALL);
  words.textContent = one.prompt || "opened";
  button.title = one.prompt || "opened";
  button.append(image, words);
  button.addEventListener("click", () => show(one));
  item.append(button);
  $("history").prepend(item);
}

function drawBoxes() { // regions of the score over the picture, where it is shown
  const picture = $("picture"), boxes = $("boxes");
  boxes.replaceChildren();
  const found = shown && shown.score;
  if (!found || !picture.naturalWidth) return;
  const scale = Math.min(picture.clientWidth / picture.naturalWidth, picture.clientHeight / picture.naturalHeight);
  const width = picture.naturalWidth * scale, height = picture.naturalHeight * scale;
  Object.assign(boxes.style, {
    left: `${picture.offsetLeft + (picture.clientWidth - width) / 2}px`,
    top: `${picture.offsetTop + (picture.clientHeight - height) / 2}px`,
    width: `${width}px`, height: `${height}px`,
  });
  found.regions.forEach((region, i) => {
    const [x0, y0, x1, y1] = region.box, box = document.createElement("div"), name = document.createElement("span");
    box.className = region.score !== null && region.score < 0 ? "box low" : "box";
    Object.assign(box.style, {
      left: `${x0 * scale}px`, top: `${y0 * scale}px`,
      width: `${(x1 - x0) * scale}px`, height: `${(y1 - y0) * scale}px`,
    });
    name.textContent = i + 1;
    box.append(name);
    boxes.append(box);
  });
}

const number = (region) => (region.score === null ? region.status : region.score.toFixed(2).replace("-", "−"));

function scores() { // the table beside the boxes
  const table = $("scores"), found = shown.score;
  table.hidden = !found;
  drawBoxes();
  if (!found) return;
  const rows = found.regions.map((region, i) => {
    const row = document.createElement("tr"), name = document.createElement("td"), value = document.createElement("td");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `Region ${i + 1}`;
    const lit = (on) => () => { const box = $("boxes").children[i]; if (box) box.classList.toggle("lit", on); };
    for (const [kind, on] of [["focus", true], ["mouseenter", true], ["blur", false], ["mouseleave", false]]) {
      button.addEventListener(kind, lit(on));
    }
    name.append(button);
    value.textContent = number(region);
    row.append(name, value);
    return row;
  });
  const whole = document.createElement("tr"), name = document.createElement("th"), value = document.createElement("td");
  name.scope = "row";
  name.textContent = "Whole picture";
  value.textContent = number(found);
  whole.append(name, value);
  table.tBodies[0].replaceChildren(whole, ...rows);
}

// ----------------------------------------------------------------------------------------- the work

async function work(form, what, does) { // one at a time; what is wrong is said
  if (going) return;
  going = new AbortController();
  const go = form && form.querySelector(".go"), stop = form && form.querySelector(".stop");
  if (go) { go.disabled = true; stop.disabled = false; stop.onclick = () => going && going.abort(); }
  $("wrong").textContent = "";
  $("state").textContent = what;
  const began = performance.now();
  try {
    await does(going.signal);
    $("state").textContent = `done in ${((performance.now() - began) / 1000).toFixed(1)} s`;
  } catch (error) {
    const stopped = error.name === "AbortError";
    $("state").textContent = stopped ? "stopped" : "";
    if (!stopped) $("wrong").textContent = error.message;
    if (shown) show(shown); else { $("picture").hidden = true; $("empty").hidden = false; $("frame").classList.remove("full"); }
  } finally {
    going = null;
    $("way").hidden = true;
    if (go) { go.disabled = false; stop.disabled = true; }
  }
}

function fields(form) { // what was filled in, numbers as numbers
  const found = {};
  for (const one of form.elements) {
    if (!one.name || (one.type === "checkbox" ? !one.checked : one.value.trim() === "")) continue;
    const is = one.type === "number" || one.name === "seed";
    found[one.name] = one.type === "checkbox" ? true : is ? Number(one.value) : one.value.trim();
  }
  return found;
}

async function follow(reply, prompt, edited = false) { // pictures of the way, then the images
  const way = $("way");
  for await (const event of events(reply)) {
    if (event.type.endsWith(".partial_image")) {
      way.hidden = false;
      way.max = event.steps;
      way.value = Math.max(way.value, event.step);
      show({ data: event.b64_json, prompt }, true);
      $("caption").textContent = `${prompt} · step ${event.step} of ${event.steps}`;
    } else {
      const one = { data: event.b64_json, prompt, seed: event.seed, thought: event.reasoning_content, edited };
      remember(one);
      show(one);
    }
  }
}

const forms = { draw: $("panel-draw"), ask: $("panel-ask"), edit: $("panel-edit") };

forms.draw.addEventListener("submit", (event) => {
  event.preventDefault();
  const told = fields(forms.draw);
  $("way").value = 0;
  work(forms.draw, "drawing", async (signal) => {
    const body = { ...told, stream: true, partial_images: 8 };
    await follow(await json("v1/images/generations", body, signal), told.prompt);
  });
});

function blob(one) { // the picture's file
  const data = one.url ? one.url.slice(one.url.indexOf(",") + 1) : one.data;
  return new Blob([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))]);
}

forms.edit.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!shown) { $("wrong").textContent = "There is no picture yet: draw or open one."; return; }
  const told = fields(forms.edit), from = shown;
  $("way").value = 0;
  work(forms.edit, "editing", async (signal) => {
    const body = new FormData();
    body.append("image", blob(from), "picture.png");
    for (const [name, value] of Object.entries({ ...told, stream: true, partial_images: 8 })) body.append(name, value);
    await follow(await asked("v1/images/edits", { method: "POST", body, signal }), told.prompt, true);
  });
});

forms.ask.addEventListener("submit", (event) => {
  event.preventDefault();
  const told = fields(forms.ask), about = shown;
  const item = document.createElement("li"), q = document.createElement("q");
  const thought = document.createElement("p"), answer = document.createElement("p");
  q.textContent = told.question;
  thought.className = "thought";
  item.append(q, thought, answer);
  $("answers").prepend(item);
  work(forms.ask, "answering", async (signal) => {
    const content = [{ type: "text", text: told.question }];
    if (about) content.unshift({ type: "image_url", image_url: { url: about.url || source(about.data) } });
    const body = { messages: [{ role: "user", content }], stream: true, think: told.think === true };
    for await (const part of events(await json("v1/chat/completions", body, signal))) {
      const delta = part.choices.length ? part.choices[0].delta : {};
      thought.textContent += delta.reasoning_content || "";
      answer.textContent += delta.content || "";
    }
  }).then(() => { if (!answer.textContent && !thought.textContent) item.remove(); });
});

$("score").addEventListener("click", () => {
  const one = shown;
  const prompt = (!one.edited && one.prompt) || $("prompt").value.trim();
  if (!prompt) { $("wrong").textContent = "What should it show? Write it under Draw."; return; }
  work(null, "scoring", async (signal) => {
    const reply = await json("v1/score", { prompt, image: one.url || source(one.data) }, signal);
    one.score = await reply.json();
    if (shown === one) scores();
  });
});

$("again").addEventListener("click", () => {
  for (const form of [forms.draw, forms.edit]) form.elements.seed.value = shown.seed;
});

// --------------------------------------------------------------------------- pictures from elsewhere

function opened(file) {
  if (!file || !file.type.startsWith("image/")) return;
  const reader = new FileReader();
  reader.onload = () => {
    const one = { url: reader.result, prompt: "" };
    remember(one);
    show(one);
  };
  reader.readAsDataURL(file);
}

$("open").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => opened($("file").files[0]));
document.addEventListener("paste", (event) => opened(event.clipboardData.files[0]));
for (const kind of ["dragover", "drop", "dragleave"]) {
  $("frame").addEventListener(kind, (event) => {
    event.preventDefault();
    $("frame").classList.toggle("over", kind === "dragover");
    if (kind === "drop") opened(event.dataTransfer.files[0]);
  });
}

// ------------------------------------------------------------------------------ tabs, keys, the theme

const tabs = [...document.querySelectorAll("[role=tab]")];

function turned(tab) {
  for (const one of tabs) {
    const on = one === tab;
    one.setAttribute("aria-selected", String(on));
    one.tabIndex = on ? 0 : -1;
    $(one.getAttribute("aria-controls")).hidden = !on;
  }
}

tabs.forEach((tab, i) => {
  tab.addEventListener("click", () => turned(tab));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = tabs[(to + tabs.length) % tabs.length];
    turned(next);
    next.focus();
  });
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && going) going.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.form) event.target.form.requestSubmit();
});

const themes = ["system", "light", "dark"];

function dressed(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme").textContent = `Theme: ${theme}`;
  localStorage.setItem("theme", theme);
}

$("theme").addEventListener("click", () => {
  const now = localStorage.getItem("theme") || "system";
  dressed(themes[(themes.indexOf(now) + 1) % themes.length]);
});
dressed(themes.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "system");
window.addEventListener("resize", drawBoxes);

// ------------------------------------------------------------------------------------------ the start

asked("v1/models").then((reply) => reply.json()).then((found) => {
  const [model] = found.data, by = model.defaults || {};
  $("model").textContent = model.id;
  document.title = `srum · ${model.id}`;
  for (const form of [forms.draw, forms.edit]) {
    const steps = form.elements.num_inference_steps;
    steps.placeholder = by.num_inference_steps || "";
    steps.closest("label").hidden = !("num_inference_steps" in by);
  }
  if (model.edits === false) { // it draws from words alone
    $("tab-edit").hidden = true;
    tabs.splice(tabs.indexOf($("tab-edit")), 1);
  }
  forms.draw.elements.think.closest("label").hidden = !model.thinks || model.edits === false;
  forms.ask.elements.think.closest("label").hidden = !model.thinks;
  forms.draw.elements.guidance_scale.placeholder = by.guidance_scale ?? "";
  forms.draw.elements.size.placeholder = by.size || "auto";
  document.body.dataset.ready = "yes";
}).catch((error) => { $("wrong").textContent = error.message; });
