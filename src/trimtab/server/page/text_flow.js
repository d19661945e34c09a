// Text as it comes, into blocks: plain text, and code between fences, all of it as text nodes.
// A fence is known when its line is over; its line then moves into the block of the code.

export class TextFlow {
  // `decorate(span, tokens)` is called for each span that shows tokens.
  constructor(container, decorate = () => {}) {
    this._container = container;
    this._decorate = decorate;
    this._isCode = false;
    this._line = []; // the nodes of the line that is not over yet
    this._block = this._open("div", "text");
  }

  add({ text, tokens }) {
    for (const part of text.split(/(?<=\n)/)) {
      const node = tokens.length ? document.createElement("span") : document.createTextNode("");
      node.textContent = part;
      if (tokens.length) this._decorate(node, tokens);
      this._block.append(node);
      this._line.push(node);
      if (part.endsWith("\n")) this._endLine();
    }
  }

  _endLine() {
    const nodes = this._line;
    const line = nodes.map((node) => node.textContent).join("");
    this._line = [];
    const closes = this._isCode && /^ {0,3}```\s*$/.test(line);
    const opens = !this._isCode && /^ {0,3}```[^`]*\n$/.test(line);
    if (!closes && !opens) return;
    if (opens) this._block = this._open("pre", "code");
    const fence = document.createElement("span");
    fence.className = "fence";
    fence.append(...nodes);
    this._block.append(fence);
    this._isCode = opens;
    if (closes) this._block = this._open("div", "text");
  }

  _open(tag, className) {
    const block = document.createElement(tag);
    block.className = className;
    if (tag === "pre") block.tabIndex = 0; // it scrolls
    this._container.append(block);
    return block;
  }
}

export function showText(container, text) {
  new TextFlow(container).add({ text, tokens: [] });
}
