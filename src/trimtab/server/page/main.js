// The page: what is in index.html, wired together.

import { getJson, key } from "./api.js";
import { Chat } from "./chat.js";
import { ConversationView } from "./conversation_view.js";
import { Dashboard } from "./dashboard.js";
import { drawTimeline } from "./timeline.js";
import { showDetails } from "./token_details.js";

const RETRY_MS = 1000; // while the model loads
const NUMBERS = { temperature: "temperature", "top-p": "top_p", "max-tokens": "max_tokens", seed: "seed" };

const at = (id) => document.getElementById(id);
let model = null; // its name, once known

// -- the fields of a request

function requestFields() {
  if (!at("fields").checkValidity()) {
    at("settings").open = true;
    at("fields").reportValidity();
    throw new Error("The settings hold a value that cannot be.");
  }
  const options = model === null ? {} : { model };
  for (const [id, name] of Object.entries(NUMBERS)) {
    if (at(id).value !== "") options[name] = at(id).valueAsNumber;
  }
  return {
    mode: at("mode").value,
    system: at("system").value,
    probabilities: at("probabilities").checked,
    options: { ...options, ...moreFields() },
  };
}

function moreFields() {
  const text = at("more").value.trim();
  if (text === "") return {};
  let more;
  try {
    more = JSON.parse(text);
  } catch {
    throw new Error("The further fields of the request are not valid JSON.");
  }
  if (more === null || typeof more !== "object" || Array.isArray(more)) {
    throw new Error("The further fields of the request must be a JSON object.");
  }
  return more;
}

// -- the chat

function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = text === "";
}

function useMode() {
  const isChat = at("mode").value === "chat";
  at("system").disabled = !isChat;
  at("max-tokens").placeholder = isChat ? "context" : "256";
}

function labelMessage() {
  const { openCall } = chat;
  at("message-label").textContent = openCall ? `Result of ${openCall.function.name}` : "Message";
}

const chat = new Chat(new ConversationView(at("turns")), requestFields, {
  notice,
  timings: (timings) => drawTimeline(at("timeline"), timings),
  unauthorized: () => askForKey("The key was not accepted."),
  running: (isRunning) => {
    at("send").hidden = isRunning;
    at("stop").hidden = !isRunning;
    labelMessage();
  },
  edit: (text) => {
    labelMessage();
    at("message").value = text;
    at("message").focus();
  },
  completion: () => {
    at("mode").value = "completion";
    useMode();
  },
});

function send() {
  const text = at("message").value;
  if (chat.isRunning || text.trim() === "") return;
  at("message").value = "";
  chat.send(text);
}

at("mode").addEventListener("change", useMode);
at("fields").addEventListener("submit", (event) => event.preventDefault());
at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
at("stop").addEventListener("click", () => {
  chat.stop();
  at("message").focus();
});
at("new-chat").addEventListener("click", () => {
  chat.reset();
  notice("");
  labelMessage();
  at("message").focus();
});
showDetails(at("turns"), at("details"));

// -- the two views of a narrow screen

for (const view of ["chat", "insight"]) {
  at(`show-${view}`).addEventListener("click", () => {
    document.body.dataset.view = view;
    for (const one of ["chat", "insight"]) {
      at(`show-${one}`).setAttribute("aria-pressed", String(one === view));
    }
  });
}

// -- the key

function askForKey(message) {
  at("change-key").hidden = false;
  if (at("key-dialog").open) return;
  at("key-message").textContent = key.get() ? message : "";
  at("key-dialog").showModal();
}

at("change-key").addEventListener("click", () => askForKey(""));
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = at("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(given)) {
    at("key-message").textContent = "A key is visible ASCII characters, without spaces.";
    return;
  }
  key.set(given);
  at("key").value = "";
  at("key-dialog").close();
  connect();
});

// -- the start

async function connect() {
  try {
    const { data } = await getJson("v1/models");
    model = data[0].id;
    at("model").textContent = model;
    document.title = `${model} – trimtab`;
    dashboard.resume();
  } catch (error) {
    at("model").textContent = error.message;
    if (error.status === 401) askForKey("The key was not accepted.");
    else setTimeout(connect, RETRY_MS);
  }
}

const dashboard = new Dashboard(at("dashboard"), () => askForKey("The key was not accepted."));
useMode();
connect();
at("message").focus();
