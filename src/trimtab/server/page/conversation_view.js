// The turns of a conversation on the page. What a model or a user wrote becomes text nodes only.

import { showText, TextFlow } from "./text_flow.js";
import { milliseconds } from "./timeline.js";
import { decorate, makeReachable } from "./token_details.js";

const NEAR = 48; // pixels from the end that count as at the end

export class ConversationView {
  constructor(container) {
    this._container = container;
    this._follows = true;
    container.addEventListener(
      "scroll",
      () => {
        const { scrollHeight, scrollTop, clientHeight } = container;
        this._follows = scrollHeight - scrollTop - clientHeight < NEAR;
      },
      { passive: true },
    );
  }

  set busy(isBusy) {
    this._container.setAttribute("aria-busy", String(isBusy)); // it is read out when complete
    document.body.classList.toggle("busy", isBusy);
  }

  addQuestion(name, text) {
    const turn = this._turn("user", name);
    showText(part(turn, "div", "content"), text);
    this._toEnd();
    return turn;
  }

  // `actions` are [label, function] of the buttons below it, while it is the last turn.
  addAnswer(actions) {
    this._follows = true;
    return new AnswerView(this._turn("assistant", "Model"), actions, () => this._toEnd());
  }

  clear() {
    this._container.replaceChildren();
  }

  _turn(role, name) {
    const turn = document.createElement("article");
    turn.className = `turn ${role}`;
    part(turn, "h3", "").textContent = name;
    this._container.append(turn);
    return turn;
  }

  _toEnd() {
    if (!this._follows || this._isScheduled) return;
    this._isScheduled = true;
    requestAnimationFrame(() => {
      this._isScheduled = false;
      this._container.scrollTop = this._container.scrollHeight;
    });
  }
}

class AnswerView {
  constructor(turn, actions, onGrowth) {
    this.turn = turn;
    this._onGrowth = onGrowth;
    this._reasoning = part(turn, "details", "reasoning");
    part(this._reasoning, "summary", "").textContent = "Reasoning";
    this._reasoningText = part(this._reasoning, "div", "text");
    this._reasoning.hidden = true;
    this._flow = new TextFlow(part(turn, "div", "content"), (span, tokens) => {
      decorate(span, tokens);
      if (!this._hasToken && span.classList.contains("token")) {
        this._hasToken = true;
        span.tabIndex = 0;
      }
    });
    this._calls = part(turn, "div", "calls");
    this._error = part(turn, "p", "error");
    const footer = part(turn, "footer", "");
    this._info = part(footer, "small", "");
    for (const [label, action] of actions) {
      const button = part(footer, "button", "action");
      button.type = "button";
      button.textContent = label;
      button.addEventListener("click", action);
    }
  }

  add(answer, { pieces, reasoning, callsChanged }) {
    for (const piece of pieces) this._flow.add(piece);
    if (reasoning) {
      this._reasoning.hidden = false;
      this._reasoningText.append(reasoning);
    }
    if (callsChanged) this._showCalls(answer.toolCalls);
    this._onGrowth();
  }

  finish(answer, how) {
    this._info.textContent = [how ?? answer.finishReason, ...numbersOf(answer)].join(" · ");
    const first = this.turn.querySelector(".token");
    if (first) makeReachable(first);
    this._onGrowth();
  }

  fail(error) {
    const facts = [error.status || null, error.code, error.param].filter(Boolean);
    this._error.setAttribute("role", "alert");
    this._error.textContent = error.message + (facts.length ? ` (${facts.join(", ")})` : "");
    this._onGrowth();
  }

  _showCalls(calls) {
    const blocks = calls.map(({ id, function: { name, arguments: given } }) => {
      const block = document.createElement("pre");
      block.className = "code call";
      block.tabIndex = 0;
      block.textContent = JSON.stringify({ id, name, arguments: parsed(given) }, null, 2);
      return block;
    });
    this._calls.replaceChildren(...blocks);
  }
}

function numbersOf({ usage, timings }) {
  const found = [];
  if (usage) found.push(`${usage.completion_tokens} tokens`);
  if (timings) found.push(`first after ${milliseconds(timings.first_token_ms)}`);
  const choice = timings?.choices?.[0];
  if (choice?.decode_ms && choice.completion_tokens > 1) {
    found.push(`${(((choice.completion_tokens - 1) * 1000) / choice.decode_ms).toFixed(1)} tokens/s`);
  }
  return found;
}

// Arguments as JSON, or as the text that they are until they are complete.
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function part(parent, tag, className) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  parent.append(node);
  return node;
}
