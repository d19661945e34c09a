// The conversation: what was said, the request that goes out for it, the answer as it comes.

import { Answer } from "./answer.js";
import { ApiError, call, documents } from "./api.js";

const NUM_ALTERNATIVES = 5;
const COMPLETION_TOKENS = 256; // the API's own default for completions is 16
const FALLBACK = "This model has no chat template: it continues your text instead.";

export class Chat {
  // `fields()` gives {mode, system, probabilities, options}, options being fields of the request;
  // it throws what is wrong with them as an Error. `on` holds what the page does about it all:
  // notice(text), timings(timings), unauthorized(), running(isRunning), edit(text), completion().
  constructor(view, fields, on) {
    this._view = view;
    this._fields = fields;
    this._on = on;
    this._turns = []; // {role, content, id, node} and {role: "assistant", answer, node}
    this._abort = null;
  }

  get isRunning() {
    return this._abort !== null;
  }

  // The tool call that the next message answers; null: it is the user's.
  get openCall() {
    const at = this._turns.findLastIndex((turn) => turn.role === "assistant");
    if (at < 0) return null;
    return this._turns[at].answer.toolCalls[this._turns.length - 1 - at] ?? null;
  }

  async send(text) {
    if (this.isRunning || text === "") return;
    const { openCall } = this;
    const role = openCall ? "tool" : "user";
    const name = openCall ? `Result of ${openCall.function.name}` : "You";
    const node = this._view.addQuestion(name, text);
    this._turns.push({ role, content: text, id: openCall?.id, node });
    if (openCall === null || this.openCall === null) await this._run();
    else this._on.running(false); // the other results come first
  }

  stop() {
    this._abort?.abort();
  }

  async retry() {
    if (this.isRunning || this._turns.at(-1)?.role !== "assistant") return;
    this._drop();
    await this._run();
  }

  edit() {
    if (this.isRunning || this._turns.at(-1)?.role !== "assistant") return;
    this._drop();
    this._on.edit(this._drop().content);
  }

  reset() {
    this.stop();
    this._turns = [];
    this._view.clear();
  }

  _drop() {
    const turn = this._turns.pop();
    turn.node.remove();
    return turn;
  }

  async _run() {
    let fields;
    try {
      fields = this._fields();
    } catch (error) {
      this._on.notice(error.message);
      this._on.edit(this._drop().content);
      return;
    }
    this._on.notice("");
    const actions = [
      ["Edit", () => this.edit()],
      ["Try again", () => this.retry()],
    ];
    const body = this._body(fields);
    const view = this._view.addAnswer(actions);
    const turn = { role: "assistant", answer: new Answer(), node: view.turn };
    this._turns.push(turn);
    const abort = (this._abort = new AbortController());
    this._view.busy = true;
    this._on.running(true);
    const error = await this._stream(fields.mode, body, turn.answer, view, abort.signal);
    this._abort = null;
    this._view.busy = false;
    this._on.running(false);
    if (error !== null && fields.mode === "chat" && isAboutTemplate(error)) {
      this._drop();
      this._on.completion();
      this._on.notice(FALLBACK);
      await this._run();
      this._on.notice(FALLBACK);
    } else if (error?.status === 401) {
      this._on.unauthorized();
    }
  }

  // The error that ended it; null: none did, or the user stopped it.
  async _stream(mode, body, answer, view, signal) {
    const path = mode === "chat" ? "v1/chat/completions" : "v1/completions";
    try {
      for await (const chunk of documents(await call(path, { body, signal }))) {
        view.add(answer, answer.add(chunk));
      }
    } catch (error) {
      if (error.name === "AbortError") {
        view.finish(answer, "stopped");
        return null;
      }
      view.fail(error instanceof ApiError ? error : new ApiError(String(error)));
      return error;
    }
    view.finish(answer);
    if (answer.timings) this._on.timings(answer.timings);
    return null;
  }

  _body({ mode, system, probabilities, options }) {
    const body = { stream: true, stream_options: { include_usage: true }, timings: true };
    if (mode === "chat") {
      if (probabilities) Object.assign(body, { logprobs: true, top_logprobs: NUM_ALTERNATIVES });
      body.messages = [...(system ? [{ role: "system", content: system }] : []), ...this._messages()];
    } else {
      if (probabilities) body.logprobs = NUM_ALTERNATIVES;
      body.max_tokens = COMPLETION_TOKENS;
      body.prompt = this._turns.map((turn) => turn.content ?? turn.answer.content).join("");
    }
    return { ...body, ...options };
  }

  _messages() {
    const messages = [];
    for (const { role, content, id, answer } of this._turns) {
      if (role === "assistant") {
        const message = answer.message();
        if (message.content || message.tool_calls) messages.push(message);
      } else {
        messages.push(role === "tool" ? { role, tool_call_id: id, content } : { role, content });
      }
    }
    return messages;
  }
}

function isAboutTemplate(error) {
  return error.status === 400 && error.param === "messages" && /no chat template/.test(error.message);
}
