// One answer as it grows: the chunks of a stream, of chats or completions, to pieces of text.
// Nothing here knows the document.
//
// A piece is {text, tokens}: text to show and the tokens that it is made of, none if unknown. A
// token is {text, bytes, logprob, top: [{text, logprob}]}.

export class Answer {
  constructor() {
    this.content = "";
    this.reasoning = "";
    this.toolCalls = []; // as the API has them in a message
    this.finishReason = null;
    this.usage = null;
    this.timings = null;
    this._pending = []; // tokens whose text has not come yet
    this._decoder = new TextDecoder();
  }

  // What the chunk adds: {pieces, reasoning, callsChanged}.
  add(chunk) {
    this.usage = chunk.usage ?? this.usage;
    this.timings = chunk.timings ?? this.timings;
    const added = { pieces: [], reasoning: "", callsChanged: false };
    const choice = chunk.choices?.find(({ index }) => index === 0); // however many were asked for
    if (!choice) return added;
    const delta = choice.delta ?? { content: choice.text };
    this.finishReason = choice.finish_reason ?? this.finishReason;
    added.reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
    this.reasoning += added.reasoning;
    const text = delta.content ?? "";
    this.content += text;
    added.pieces = this._pieces(text, tokensOf(choice.logprobs));
    for (const call of delta.tool_calls ?? []) this._addCall(call);
    added.callsChanged = Boolean(delta.tool_calls?.length);
    return added;
  }

  // What a next request says of it.
  message() {
    const message = { role: "assistant", content: this.content };
    if (this.toolCalls.length) message.tool_calls = this.toolCalls;
    return message;
  }

  _addCall({ index, id, function: part }) {
    this.toolCalls[index] ??= { id: "", type: "function", function: { name: "", arguments: "" } };
    const call = this.toolCalls[index];
    call.id = id ?? call.id;
    call.function.name += part?.name ?? "";
    call.function.arguments += part?.arguments ?? "";
  }

  // Cuts text where its tokens meet. A token that shows nothing by itself (a part of a character, a
  // special one) goes with the next piece; text whose tokens do not spell it stays whole.
  _pieces(text, tokens) {
    const pieces = [];
    let at = 0;
    for (const token of tokens) {
      this._pending.push(token);
      const own = this._decoder.decode(token.bytes, { stream: true });
      if (own !== "" && text.startsWith(own, at)) {
        pieces.push({ text: own, tokens: this._pending });
        at += own.length;
        this._pending = [];
      }
    }
    if (at < text.length) {
      pieces.push({ text: text.slice(at), tokens: this._pending });
      this._pending = [];
    }
    return pieces;
  }
}

function tokensOf(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) {
    return logprobs.content.map(({ token, logprob, bytes, top_logprobs: top }) => ({
      text: token,
      bytes: bytes ? new Uint8Array(bytes) : bytesOf(token),
      logprob,
      top: (top ?? []).map((other) => ({ text: other.token, logprob: other.logprob })),
    }));
  }
  return (logprobs.tokens ?? []).map((token, i) => ({
    text: token,
    bytes: bytesOf(token),
    logprob: logprobs.token_logprobs[i],
    top: Object.entries(logprobs.top_logprobs?.[i] ?? {})
      .map(([text, logprob]) => ({ text, logprob }))
      .sort((a, b) => b.logprob - a.logprob),
  }));
}

// Tokens that are no text by themselves are written `bytes:\xe2\x80`.
function bytesOf(token) {
  if (/^bytes:(\\x[0-9a-f]{2})+$/.test(token)) {
    return Uint8Array.from(token.slice("bytes:\\x".length).split("\\x"), (hex) => parseInt(hex, 16));
  }
  return new TextEncoder().encode(token);
}
