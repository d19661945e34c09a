// What the server does now: /dashboard.json once a second, only while somebody can see it.

import { getJson } from "./api.js";
import { sparkline } from "./svg.js";
import { milliseconds } from "./timeline.js";

const PERIOD_MS = 1000;
const NUM_KEPT = 60; // readings in a sparkline: the last minute

const number = (value, digits = 0) =>
  value === null || value === undefined ? "–" : value.toFixed(digits);
const outOf = (value, most) => (most ? `${number(value)} / ${most}` : number(value));

// `read` gives the card's values out of a reading, each a line of its sparkline; `show` its words.
const CARDS = [
  {
    title: "Generated tokens/s",
    read: (reading) => [reading.tokens_per_second?.generated],
    show: ([generated]) => [["", number(generated, 1)]],
  },
  {
    title: "Prompt tokens/s",
    read: (reading) => [reading.tokens_per_second?.prompt],
    show: ([prompt]) => [["", number(prompt, 1)]],
  },
  {
    title: "Time to first token",
    read: ({ last_minute: past }) => [past?.first_token_ms?.p50, past?.first_token_ms?.p95],
    show: ([p50, p95]) => [["p50", milliseconds(p50)], ["p95", milliseconds(p95)]],
  },
  {
    title: "Inter-token latency",
    read: ({ last_minute: past }) => [past?.inter_token_ms?.p50, past?.inter_token_ms?.p95],
    show: ([p50, p95]) => [["p50", milliseconds(p50)], ["p95", milliseconds(p95)]],
  },
  {
    title: "Batch: running requests",
    read: ({ engine }) => [engine?.running],
    show: ([running], { engine }) => [
      ["", outOf(running, engine?.max_running)],
      ["rows a step", number(engine?.mean_step_tokens, 1)],
    ],
  },
  {
    title: "Queue: waiting requests",
    read: ({ engine }) => [engine?.waiting],
    show: ([waiting], { engine }) => [["", outOf(waiting, engine?.max_waiting)]],
  },
];
const BLOCK_STATES = [["used", "used"], ["cached", "cached"], ["empty", "free"]];

export class Dashboard {
  // `unauthorized` is called when the server asks for another key; `resume` goes on.
  constructor(container, unauthorized) {
    this._unauthorized = unauthorized;
    this._status = node("p", "empty", "");
    this._cards = CARDS.map((card) => ({ card, history: card.read({}).map(() => []), ...frame(card) }));
    this._blocks = blocksFrame();
    const grid = node("div", "cards", "");
    grid.append(...this._cards.map(({ root }) => root), this._blocks.root);
    container.append(grid, this._status);
    this._timer = null;
    this._isSeen = false;
    new IntersectionObserver((entries) => {
      this._isSeen = entries.at(-1).isIntersecting;
      this.resume();
    }).observe(container);
    document.addEventListener("visibilitychange", () => this.resume());
  }

  // Poll, if it is seen and does not yet.
  resume() {
    if (this._timer === null && this._isVisible()) this._poll();
  }

  _isVisible() {
    return this._isSeen && document.visibilityState === "visible";
  }

  async _poll() {
    this._timer = 0; // a reading is under way
    let goesOn = true;
    try {
      this._show(await getJson("dashboard.json"));
    } catch (error) {
      this._status.textContent = error.message;
      goesOn = error.status !== 401 && error.status !== 404;
      if (error.status === 401) this._unauthorized();
    }
    this._timer = null;
    if (!goesOn || !this._isVisible()) return;
    this._timer = setTimeout(() => {
      this._timer = null;
      this.resume();
    }, PERIOD_MS);
  }

  _show(reading) {
    for (const { card, history, values, chart } of this._cards) {
      const latest = card.read(reading).map((value) => value ?? null);
      latest.forEach((value, i) => {
        history[i].push(value);
        history[i].splice(0, history[i].length - NUM_KEPT);
      });
      showValues(values, card.show(latest, reading));
      chart.replaceChildren(sparkline(history, NUM_KEPT));
    }
    this._blocks.show(reading.engine?.blocks ?? {});
    const { plan, state, engine_restarts: restarts, last_minute: past } = reading;
    const said = [plan, state, past && `${past.requests} requests in the last minute`];
    if (restarts) said.push(`${restarts} restarts of the engine`);
    this._status.textContent = said.filter(Boolean).join("; ");
  }
}

function frame({ title }) {
  const root = node("div", "card", "");
  const values = node("p", "values", "");
  const chart = node("div", "chart", "");
  root.append(node("h3", "", title), values, chart);
  return { root, values, chart };
}

function showValues(container, pairs) {
  container.replaceChildren();
  for (const [label, value] of pairs) {
    const pair = node("span", "", "");
    if (label) pair.append(node("small", "", label), " ");
    pair.append(node("b", "", value));
    container.append(pair, " ");
  }
}

function blocksFrame() {
  const { root, values, chart } = frame({ title: "KV cache blocks" });
  root.classList.add("wide");
  chart.className = "stack";
  const bars = BLOCK_STATES.map(([state]) => node("div", `block ${state}`, ""));
  chart.append(...bars);
  const show = (blocks) => {
    showValues(values, BLOCK_STATES.map(([state, label]) => [label, number(blocks[state])]));
    BLOCK_STATES.forEach(([state], i) => {
      bars[i].style.flexGrow = String(blocks[state] ?? 0);
    });
  };
  return { root, show };
}

function node(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}
